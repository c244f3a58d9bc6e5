package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/build/image/debian"
)

// release is a release of a distribution and its kernel. Which one exactly is for apt to say.
type release struct {
	kernel       string // as the user names it
	distribution string // the last part of the path of its mirror
	suite        string
	components   string
	image        string // the package that depends on the kernel; %s is the architecture
	refuses      bool   // the driver ends at its start
}

const newest = "newest"

// releases has the kernels from the oldest to the newest.
var releases = []release{
	{kernel: "5.10", distribution: "debian", suite: "bullseye", components: "main", image: "linux-image-cloud-%s", refuses: true},
	{kernel: "5.15", distribution: "ubuntu", suite: "jammy", components: "main universe", image: "linux-image-virtual"},
	{kernel: "6.1", distribution: "debian", suite: "bookworm", components: "main", image: "linux-image-cloud-%s"},
	{kernel: "6.12", distribution: "debian", suite: "trixie", components: "main", image: "linux-image-cloud-%s"},
	{kernel: newest, distribution: "debian", suite: "sid", components: "main", image: "linux-image-cloud-%s"},
}

// choose returns the releases of the names. Without names it returns all that the mirrors have.
func choose(names []string, mirrors map[string]string) ([]release, error) {
	var chosen []release
	for _, r := range releases {
		_, reachable := mirrors[r.distribution]
		if slices.Contains(names, r.kernel) || len(names) == 0 && reachable {
			chosen = append(chosen, r)
		}
	}
	for _, name := range names {
		if !slices.ContainsFunc(chosen, func(r release) bool { return r.kernel == name }) {
			return nil, fmt.Errorf("kernel %q: one of %s is wanted", name, kernels())
		}
	}
	for _, r := range chosen {
		if _, reachable := mirrors[r.distribution]; !reachable {
			return nil, fmt.Errorf("kernel %s is of %s, of which the sources of apt name no mirror: name a sources file that has one (APT_SOURCES)", r.kernel, r.distribution)
		}
	}
	return chosen, nil
}

func kernels() string {
	var names []string
	for _, r := range releases {
		names = append(names, r.kernel)
	}
	return strings.Join(names, ", ")
}

// mirrorsOf returns the URIs of the mirrors that a sources file of apt names, or those of this
// machine, by the last part of their path, the distribution.
func mirrorsOf(ctx context.Context, sources string) (map[string]string, error) {
	args := []string{"update", "--print-uris"} // of which it gets none
	if sources != "" {
		if _, err := os.Stat(sources); err != nil {
			return nil, err
		}
		args = append(args, "-o", "Dir::Etc::sourcelist="+sources, "-o", "Dir::Etc::sourceparts=/dev/null")
	}
	out, err := debian.Output(exec.CommandContext(ctx, "apt-get", args...))
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for line := range strings.Lines(out) {
		uri, _, is := strings.Cut(strings.TrimPrefix(line, "'"), "/dists/")
		if name := path.Base(uri); is && found[name] == "" {
			found[name] = uri
		}
	}
	return found, nil
}

// packages are what a guest has beside the kernel.
var packages = []string{"btrfs-progs", "xfsprogs", "e2fsprogs", "util-linux", "mount", "fdisk", "kmod", "coreutils", "libc-bin", "findutils", "grep", "sed", "tar", "procps", "busybox-static", "base-files", "bash", "dash", "attr"}

// download gets the packages of a release, and returns their files.
func (r release) download(ctx context.Context, mirror, arch, dir string) ([]debian.Package, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	keyring := "/usr/share/keyrings/" + r.distribution + "-archive-keyring.gpg"
	if _, err := os.Stat(keyring); err != nil {
		return nil, fmt.Errorf("%w: install debian-archive-keyring, or ubuntu-keyring, which Debian has from 13 on", err)
	}
	sources := filepath.Join(dir, "sources.list")
	suites := []string{r.suite}
	if r.suite != "sid" {
		suites = append(suites, r.suite+"-updates")
	}
	text := ""
	for _, suite := range suites {
		text += fmt.Sprintf("deb [signed-by=%s] %s %s %s\n", keyring, mirror, suite, r.components)
	}
	if err := os.WriteFile(sources, []byte(text), 0o644); err != nil {
		return nil, err
	}
	image := r.image
	if strings.Contains(image, "%s") {
		image = fmt.Sprintf(image, arch)
	}
	apt := debian.Apt{Dir: filepath.Join(dir, "apt"), Arch: arch, Sources: sources}
	return apt.Download(ctx, append([]string{image}, packages...))
}
