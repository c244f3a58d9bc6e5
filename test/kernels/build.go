package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/build/image/debian"
)

// program is a static binary for a guest: the tests of a package, or a command.
type program struct {
	name   string
	module string // directory below the source
	pkg    string // below the module
	tests  bool
}

var programs = []program{
	{"btrfs", ".", "./pkg/btrfs", true},
	{"sanity", "test/sanity", ".", true},
	{"btrfs-csi", ".", "./cmd/btrfs-csi", false},
	{"demo", ".", "./test/demo", false},
	{"pool-tool", "test/kernels", "./pool", false},
	{"mount", ".", "./pkg/mount", true},
	{"pool", ".", "./pkg/pool", true},
	{"driver", ".", "./pkg/driver", true},
	{"snapshot", ".", "./pkg/snapshot", true},
	{"command", ".", "./cmd/btrfs-csi", true},
	{"reliability", "test/reliability", "./soak", true},
}

// build builds the programs that the steps need into a directory. cc is the compiler for the
// architecture.
func build(ctx context.Context, source, dir, arch, cc string, wanted map[string]bool, log func(string, ...any)) error {
	for _, p := range programs {
		if !wanted[p.name] {
			continue
		}
		log("building %s", p.name)
		out := filepath.Join(dir, "bin", p.name)
		args := []string{"build", "-C", filepath.Join(source, p.module)}
		if p.tests {
			args = []string{"test", "-C", filepath.Join(source, p.module), "-c"}
		}
		args = append(args, "-trimpath", "-buildvcs=false", "-tags", "netgo osusergo", "-ldflags", "-linkmode external -extldflags -static -s -w", "-o", out, p.pkg)
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1", "GOOS=linux", "GOARCH="+arch, "CC="+cc)
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, text)
		}
	}
	return nil
}

// copySource copies what tests read: the directories of the packages.
func copySource(ctx context.Context, source, dir string) error {
	for _, part := range []string{"pkg", "cmd", "api", "internal", "test/sanity", "test/reliability", "test/testkit", "docs"} {
		files, err := debian.Output(exec.CommandContext(ctx, "git", "-C", source, "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard", part))
		if err != nil {
			return err
		}
		for name := range strings.SplitSeq(strings.TrimRight(files, "\x00"), "\x00") {
			if err := copyFile(filepath.Join(source, name), filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

func copyFile(from, to string) error {
	info, err := os.Stat(from)
	if err != nil || !info.Mode().IsRegular() {
		if os.IsNotExist(err) { // deleted, not committed yet
			return nil
		}
		return err
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, data, info.Mode()&fs.ModePerm)
}
