package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/btrfs-csi/btrfs-csi/build/image/debian"
)

// toolchain is a C compiler for each architecture, with what it links statically, out of
// Debian packages: the driver has C in it, and the compiler and C library of whatever
// machine builds a release must not be part of it. Like the image it needs no root, and
// nothing is installed.
type toolchain struct{ dir string }

// compiler is one for an architecture.
type compiler struct {
	arch     string
	packages []string
	libc     string // the package of the static C library
	program  string
}

var compilers = []compiler{
	{"amd64", []string{"gcc", "libc6-dev"}, "libc6-dev", "x86_64-linux-gnu-gcc"},
	{"arm64", []string{"gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"}, "libc6-dev-arm64-cross", "aarch64-linux-gnu-gcc"},
}

// toolchainHost is where the toolchain runs. Debian's cross compilers of other
// architectures are built otherwise, and link another C library.
const toolchainHost = "amd64"

func toolchainCommand() *cobra.Command {
	var b build
	c := &cobra.Command{
		Use:   "toolchain",
		Short: "Make the C compilers that a release is built with: cc-amd64 and cc-arm64 in the directory",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if runtime.GOARCH != toolchainHost {
				return fmt.Errorf("a release is built, and rebuilt, on %s; this machine is %s", toolchainHost, runtime.GOARCH)
			}
			work, held, err := b.lock()
			if err != nil {
				return err
			}
			defer held.Close()
			from, err := b.apt(work, toolchainHost)
			if err != nil {
				return err
			}
			return toolchain{work}.make(c.Context(), from)
		},
	}
	b.flags(c)
	return c
}

// root is where the packages are unpacked, all in one place.
func (t toolchain) root() string { return filepath.Join(t.dir, "root") }

// list has a line for each package: name and version. It is written last, so a toolchain
// that has it is complete.
func (t toolchain) list() string { return filepath.Join(t.dir, "packages") }

// make makes the toolchain, unless it is there already, of the same packages.
func (t toolchain) make(ctx context.Context, from debian.Apt) error {
	var names []string
	for _, c := range compilers {
		names = append(names, c.packages...)
	}
	packages, err := from.Download(ctx, names)
	if err != nil {
		return err
	}
	var list strings.Builder
	for _, p := range packages {
		fmt.Fprintf(&list, "%s %s\n", p.Name, p.Version)
	}
	if made, err := os.ReadFile(t.list()); err == nil && string(made) == list.String() {
		return nil
	}
	if err := errors.Join(os.RemoveAll(t.list()), os.RemoveAll(t.root()), os.MkdirAll(t.root(), 0o755)); err != nil {
		return err
	}
	for _, p := range packages {
		if _, err := debian.Output(exec.CommandContext(ctx, "dpkg-deb", "--extract", p.File, t.root())); err != nil {
			return err
		}
	}
	for _, c := range compilers {
		if err := t.write(ctx, c); err != nil {
			return err
		}
	}
	return os.WriteFile(t.list(), []byte(list.String()), 0o644)
}

// write writes the program that runs a compiler with what was unpacked alone. The
// compiler's own libraries come from there too, but for the C library of the machine.
func (t toolchain) write(ctx context.Context, c compiler) error {
	script := fmt.Sprintf(`#!/bin/sh
root=$(dirname "$0")/root
PATH=$root/usr/bin:$PATH LD_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu LC_ALL=C exec "$root/usr/bin/%s" --sysroot="$root" "$@"
`, c.program)
	file := filepath.Join(t.dir, "cc-"+c.arch)
	if err := os.WriteFile(file, []byte(script), 0o755); err != nil {
		return err
	}
	_, err := debian.Output(exec.CommandContext(ctx, file, "--version"))
	return err
}

// versions returns the packages of the toolchain.
func (t toolchain) versions() (map[string]string, error) {
	content, err := os.ReadFile(t.list())
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for line := range strings.Lines(string(content)) {
		name, version, _ := strings.Cut(strings.TrimSpace(line), " ")
		found[name] = version
	}
	return found, nil
}
