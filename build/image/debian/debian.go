// Package debian downloads packages of Debian and Ubuntu with apt, for any architecture.
package debian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// Apt downloads packages of one architecture. It keeps lists and cache in its own directory, and
// uses the sources, keys and proxies of this machine.
type Apt struct {
	Dir     string
	Arch    string // the name that both Debian and Go use
	Sources string // a sources file to use instead of those of this machine
}

// Package is a package that was downloaded.
type Package struct {
	Name, Version string
	File          string
}

// aptConfig is read after the configuration of this machine, whose hooks it disables. Because of
// the empty status file apt also downloads packages that are installed on this machine.
const aptConfig = `Dir::State "%[1]s/state";
Dir::State::status "%[1]s/status";
Dir::Cache "%[1]s/cache";
APT::Architecture "%[2]s";
#clear APT::Architectures;
APT::Architectures { "%[2]s"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
`

// Download downloads packages and their dependencies, unless they are in the cache, and returns
// them in the order of apt.
func (a Apt) Download(ctx context.Context, names []string) ([]Package, error) {
	for _, program := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%w; Debian and Ubuntu have it (make image-docker needs none)", err)
		}
	}
	if err := a.prepare(); err != nil {
		return nil, err
	}
	if _, err := a.get(ctx, "update"); err != nil {
		return nil, err
	}
	install := append([]string{"install", "--yes", "--no-remove"}, names...)
	plan, err := a.get(ctx, append([]string{"--simulate"}, install...)...)
	if err != nil {
		return nil, fmt.Errorf("%w; if the sources of apt here have nothing for %s, name a file that has: --sources, or make's APT_SOURCES", err, a.Arch)
	}
	packages, err := a.planned(plan)
	if err != nil {
		return nil, err
	}
	_, err = a.get(ctx, append([]string{"--download-only"}, install...)...)
	return packages, err
}

// prepare writes the configuration and the directories that apt needs.
func (a Apt) prepare() error {
	for _, dir := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.Dir, dir), 0o755); err != nil {
			return err
		}
	}
	config := fmt.Sprintf(aptConfig, a.Dir, a.Arch)
	if a.Sources != "" {
		sources, err := filepath.Abs(a.Sources)
		if err != nil {
			return err
		}
		if _, err := os.Stat(sources); err != nil { // apt ignores a missing file
			return err
		}
		config += fmt.Sprintf("Dir::Etc::sourcelist %q;\nDir::Etc::sourceparts \"/dev/null\";\n", sources)
	}
	return errors.Join(
		os.WriteFile(filepath.Join(a.Dir, "status"), nil, 0o644),
		os.WriteFile(filepath.Join(a.Dir, "apt.conf"), []byte(config), 0o644))
}

// get runs apt-get and returns its output. Its warnings go to stderr, because apt continues with
// old lists if it reaches no server.
func (a Apt) get(ctx context.Context, args ...string) (string, error) {
	args = append([]string{"--config-file", filepath.Join(a.Dir, "apt.conf"), "--quiet"}, args...)
	command := exec.CommandContext(ctx, "apt-get", args...)
	command.Stderr = os.Stderr
	return Output(command)
}

// Output runs a program and returns its stdout. An error contains its stderr, unless that goes
// elsewhere.
func Output(command *exec.Cmd) (string, error) {
	var out, complaints bytes.Buffer
	command.Env = append(os.Environ(), "LC_ALL=C") // the output is parsed
	command.Stdout = &out
	if command.Stderr == nil {
		command.Stderr = &complaints
	}
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("%s: %w %s", strings.Join(command.Args, " "), err, bytes.TrimSpace(complaints.Bytes()))
	}
	return out.String(), nil
}

// planLine matches a line of apt's simulation: name, version, first archive (like
// Debian-Security:12/oldstable-security) and architecture.
var planLine = regexp.MustCompile(`(?m)^Inst (\S+) \((\S+) ([^ ,]+).* \[(\w+)\]\)`)

// planned returns the packages in the output of a simulation.
func (a Apt) planned(plan string) ([]Package, error) {
	var packages []Package
	for _, found := range planLine.FindAllStringSubmatch(plan, -1) {
		name, version, archive, arch := found[1], found[2], found[3], found[4]
		if !strings.HasPrefix(archive, "Debian") && !strings.HasPrefix(archive, "Ubuntu") {
			return nil, fmt.Errorf("package %s %s would come from %s, and packages of the distribution alone are wanted; name a file of sources without it: --sources, or make's APT_SOURCES", name, version, archive)
		}
		file := fmt.Sprintf("%s_%s_%s.deb", name, strings.ReplaceAll(version, ":", "%3a"), arch)
		packages = append(packages, Package{name, version, filepath.Join(a.Dir, "cache", "archives", file)})
	}
	if len(packages) == 0 {
		return nil, fmt.Errorf("apt-get plans no package:\n%s", plan)
	}
	return packages, nil
}
