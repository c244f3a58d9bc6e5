// Package debian downloads packages of Debian and Ubuntu by apt, for any architecture.
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

// Apt downloads packages of one architecture, with lists and cache in a directory
// of its own. Sources, keys and proxies are those of this machine.
type Apt struct {
	Dir     string
	Arch    string // as Debian calls it, and Go as well
	Sources string // a sources file to use in the place of this machine's
}

// Package is a package that was downloaded.
type Package struct {
	Name, Version string
	File          string
}

// aptConfig is read after the configuration of this machine. Its hooks are not
// run: they are about the packages of the machine. An empty status makes apt
// download what is installed here as well.
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

// Download gets the packages of the names and all they depend on, unless they are
// there already, and returns them in the order of apt.
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

// prepare writes the configuration and the directories that apt wants to find.
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
		if _, err := os.Stat(sources); err != nil { // apt would go on without any
			return err
		}
		config += fmt.Sprintf("Dir::Etc::sourcelist %q;\nDir::Etc::sourceparts \"/dev/null\";\n", sources)
	}
	return errors.Join(
		os.WriteFile(filepath.Join(a.Dir, "status"), nil, 0o644),
		os.WriteFile(filepath.Join(a.Dir, "apt.conf"), []byte(config), 0o644))
}

// get runs apt-get and returns what it printed. Its warnings are for people: it
// goes on with old lists where it reaches no server.
func (a Apt) get(ctx context.Context, args ...string) (string, error) {
	args = append([]string{"--config-file", filepath.Join(a.Dir, "apt.conf"), "--quiet"}, args...)
	command := exec.CommandContext(ctx, "apt-get", args...)
	command.Stderr = os.Stderr
	return Output(command)
}

// Output runs a program and returns what it printed; an error has what it
// complained of, unless that goes elsewhere.
func Output(command *exec.Cmd) (string, error) {
	var out, complaints bytes.Buffer
	command.Env = append(os.Environ(), "LC_ALL=C") // what is parsed is in English
	command.Stdout = &out
	if command.Stderr == nil {
		command.Stderr = &complaints
	}
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("%s: %w %s", strings.Join(command.Args, " "), err, bytes.TrimSpace(complaints.Bytes()))
	}
	return out.String(), nil
}

// planLine is one of apt's simulation, with name, version, first archive, like
// Debian-Security:12/oldstable-security, and architecture.
var planLine = regexp.MustCompile(`(?m)^Inst (\S+) \((\S+) ([^ ,]+).* \[(\w+)\]\)`)

// planned returns the packages that a simulation names.
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
