package components

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/semver"
)

// source returns the directory of this package.
func source(ctx context.Context) (string, error) {
	out, err := run(ctx, ".", "go", "list", "-f", "{{.Dir}}", "github.com/btrfs-csi/btrfs-csi/test/e2e/components")
	if err != nil {
		return "", fmt.Errorf("the sources of the components are found from test/e2e or below it alone: %w", err)
	}
	return strings.TrimSpace(out), nil
}

func (b *builder) buildAll(ctx context.Context, components []component) error {
	for _, c := range components {
		if err := b.build(ctx, c); err != nil {
			return fmt.Errorf("build %s: %w", c.name, err)
		}
	}
	return nil
}

// build builds the programs of a component that are not in the cache.
func (b *builder) build(ctx context.Context, c component) error {
	module := filepath.Join(b.source, c.dir)
	versions, err := required(filepath.Join(module, "go.mod"))
	if err != nil {
		return err
	}
	key, err := componentKey(ctx, module, c)
	if err != nil {
		return err
	}
	dir, err := b.entry(ctx, c.name, key, func(dir string) error {
		start, title := time.Now(), strings.TrimSpace(c.name+" "+versions[c.programs[0].module])
		fmt.Fprintf(b.log, "building %s (about %s on 2 cores)\n", title, c.takes)
		for _, p := range c.programs {
			if err := p.build(ctx, module, dir, versions[p.module]); err != nil {
				return err
			}
		}
		fmt.Fprintf(b.log, "built %s in %s\n", title, time.Since(start).Round(time.Second))
		return nil
	})
	if err != nil {
		return err
	}
	for _, p := range c.programs {
		for _, name := range p.names {
			b.programs[name], b.versions[name] = filepath.Join(dir, name), versions[p.module]
		}
	}
	return nil
}

// build builds a program into a directory, under each of its names.
func (p program) build(ctx context.Context, module, dir, version string) error {
	if p.module != "" && version == "" {
		return fmt.Errorf("%s: go.mod does not require %s; go get it", p.names[0], p.module)
	}
	command := []string{"build"}
	if p.test {
		command = []string{"test", "-c"}
	}
	file := filepath.Join(dir, p.names[0])
	command = append(command, "-tags", p.tags, "-ldflags", "-s -w "+stamped(p.stamp, version), "-o", file, p.pkg)
	if _, err := run(ctx, module, "go", command...); err != nil {
		return err
	}
	for _, name := range p.names[1:] {
		if err := os.Link(file, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func stamped(stamp, version string) string {
	major, minor, _ := strings.Cut(strings.TrimPrefix(semver.MajorMinor(version), "v"), ".")
	return strings.NewReplacer("VERSION", version, "MAJOR", major, "MINOR", minor).Replace(stamp)
}

// required returns the versions that a go.mod requires. A program of this module has no go.mod, and no
// versions.
func required(file string) (map[string]string, error) {
	content, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	module, err := modfile.ParseLax(file, content, nil)
	if err != nil {
		return nil, err
	}
	versions := map[string]string{}
	for _, r := range module.Require {
		versions[r.Mod.Path] = r.Mod.Version
	}
	return versions, nil
}

// componentKey returns a hash of everything that determines the bytes of the programs. The hashes in go.sum stand
// for the modules.
func componentKey(ctx context.Context, module string, c component) (hash.Hash, error) {
	toolchain, err := run(ctx, module, "go", "env", "GOVERSION")
	if err != nil {
		return nil, err
	}
	key := sha256.New()
	fmt.Fprintf(key, "%q %q %+v\n", toolchain, environment, c.programs)
	return key, hashFiles(key, module)
}

// hashFiles adds the files of a directory to a key, without those of subdirectories.
func hashFiles(key hash.Hash, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !entry.Type().IsRegular() {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(key, "%s %d\n%s", entry.Name(), len(content), content)
	}
	return nil
}

// environment returns an environment in which go builds static programs, whatever the settings of the user.
var environment = []string{"CGO_ENABLED=0", "GOFLAGS=-mod=readonly -trimpath -buildvcs=false", "GOWORK=off", "GOOS=linux", "GOARCH=" + runtime.GOARCH}

// run runs a command in a directory and returns its output. At the end of ctx it interrupts the command, so that
// go can remove its temporary files.
func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	command := exec.CommandContext(ctx, name, args...)
	command.Dir = dir
	command.Env = append(os.Environ(), environment...)
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	command.WaitDelay = 10 * time.Second
	var stderr strings.Builder
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(command.Args, " "), errors.Join(ctx.Err(), err), complaint(stderr.String()))
	}
	return string(out), nil
}

// complaint returns the output of go without its lines of progress.
func complaint(stderr string) string {
	var lines []string
	for line := range strings.Lines(stderr) {
		if !strings.HasPrefix(line, "go: downloading ") {
			lines = append(lines, line)
		}
	}
	return strings.TrimSpace(strings.Join(lines, ""))
}
