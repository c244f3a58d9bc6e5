package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/build/image/debian"
)

//go:embed init.sh
var initScript string

// modules are those that a guest loads; the others are left out.
var modules = []string{"virtio_pci", "virtio_mmio", "virtio_blk", "ext4", "xfs", "btrfs", "loop", "fuse", "overlay"}

// useless is what no test needs: the system is in the memory of the guest.
var useless = []string{
	"boot", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/perl*", "usr/share/python3", "usr/share/zoneinfo",
	"usr/src", "usr/lib/firmware", "usr/lib/python3*", "usr/lib/*/perl*", "usr/lib/*/libperl*", "usr/lib/*/gconv", "usr/lib/udev", "usr/lib/systemd",
}

// system is what a guest boots.
type system struct {
	vmlinuz, initrd string // files
	version         string // of the kernel, as uname -r prints it
}

// makeSystem makes the system of a release in a directory.
func makeSystem(ctx context.Context, packages []debian.Package, dir string) (s system, err error) {
	root := filepath.Join(dir, "root")
	if err := os.RemoveAll(root); err != nil {
		return s, err
	}
	if err := unpack(ctx, packages, root); err != nil {
		return s, err
	}
	found, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil || len(found) != 1 {
		return s, fmt.Errorf("the packages have the kernels %q, want one (%w)", found, err)
	}
	s = system{vmlinuz: filepath.Join(dir, "vmlinuz"), initrd: filepath.Join(dir, "initrd"), version: strings.TrimPrefix(filepath.Base(found[0]), "vmlinuz-")}
	if err := os.Rename(found[0], s.vmlinuz); err != nil {
		return s, err
	}
	if err := keepModules(ctx, root, s.version); err != nil {
		return s, err
	}
	for _, pattern := range useless {
		names, err := filepath.Glob(filepath.Join(root, pattern))
		for _, name := range names {
			err = errors.Join(err, os.RemoveAll(name))
		}
		if err != nil {
			return s, err
		}
	}
	for name, text := range map[string]string{
		"init": initScript, "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n", "etc/group": "root:x:0:\nnogroup:x:65534:\n",
		"etc/hosts": "127.0.0.1 localhost\n", "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o755); err != nil {
			return s, err
		}
	}
	for _, empty := range []string{"proc", "sys", "dev", "tmp", "run", "root", "job"} {
		if err := os.MkdirAll(filepath.Join(root, empty), 0o755); err != nil {
			return s, err
		}
	}
	pack := exec.CommandContext(ctx, "sh", "-c", `find . -print0 | cpio --null --create --format newc --quiet > "$1"`, "sh", s.initrd)
	pack.Dir = root
	if _, err := debian.Output(pack); err != nil {
		return s, err
	}
	return s, os.RemoveAll(root)
}

// unpack unpacks packages into one tree, in which /bin and its like are links into /usr.
func unpack(ctx context.Context, packages []debian.Package, root string) error {
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.MkdirAll(filepath.Join(root, "usr", name), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+name, filepath.Join(root, name)); err != nil {
			return err
		}
	}
	for _, p := range packages {
		extract := exec.CommandContext(ctx, "sh", "-c", `dpkg-deb --fsys-tarfile "$1" | tar --extract --keep-directory-symlink --directory "$2"`, "sh", p.File, root)
		if _, err := debian.Output(extract); err != nil {
			return fmt.Errorf("package %s: %w", p.Name, err)
		}
	}
	return nil
}

// keepModules removes all modules but those that are loaded, and what these need.
func keepModules(ctx context.Context, root, version string) error {
	dir := filepath.Join(root, "usr", "lib", "modules", version)
	if _, err := debian.Output(exec.CommandContext(ctx, "depmod", "--basedir", root, version)); err != nil {
		return err
	}
	kept := map[string]bool{}
	for _, module := range modules {
		out, err := debian.Output(exec.CommandContext(ctx, "modprobe", "--dirname", root, "--set-version", version, "--show-depends", module))
		if err != nil {
			continue // built in, or this kernel has none
		}
		for line := range strings.Lines(out) {
			if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "insmod" {
				kept[filepath.Base(fields[1])] = true
			}
		}
	}
	err := filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() && strings.Contains(entry.Name(), ".ko") && !kept[entry.Name()] {
			err = os.Remove(file)
		}
		return err
	})
	if err != nil {
		return err
	}
	if len(kept) == 0 {
		return errors.New("no module was found")
	}
	_, err = debian.Output(exec.CommandContext(ctx, "depmod", "--basedir", root, version))
	return err
}
