package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/btrfs-csi/btrfs-csi/build/image/debian"
)

// check fails if the programs of a root filesystem cannot run. They must be for the right
// architecture and find their loader and libraries. On a machine of that architecture check also
// runs them.
func check(ctx context.Context, d definition, t target, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // opened for reading
	if err := checkNeeds(t, root); err != nil {
		return err
	}
	if t.arch != runtime.GOARCH {
		return nil
	}
	return checkRuns(ctx, d, t, root)
}

// checkNeeds checks the files as they were written.
func checkNeeds(t target, root *os.Root) error {
	return fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.Type() == fs.ModeSymlink {
			_, err := root.Stat(name)
			return err
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		libraries, loader, err := t.needs(filepath.Join(root.Name(), name))
		if err != nil {
			return err
		}
		if loader != "" {
			if _, err := root.Stat(loader[1:]); err != nil {
				return fmt.Errorf("loader of %s: %w", name, err)
			}
		}
		for _, library := range libraries {
			if !t.has(root, library) {
				return fmt.Errorf("%s loads %s, which is in none of %q", name, library, t.libraryDirs())
			}
		}
		return nil
	})
}

// has reports whether the loader finds a library.
func (t target) has(root *os.Root, library string) bool {
	for _, dir := range t.libraryDirs() {
		if _, err := root.Stat(path.Join(dir[1:], library)); err == nil {
			return true
		}
	}
	return false
}

// filesystems are the kinds that the programs of the image must be able to make.
var filesystems = []struct {
	name string
	mkfs []string
}{
	{"btrfs", []string{"mkfs.btrfs", "-q"}},
	{"ext4", []string{"mkfs.ext4", "-q"}},
	{"xfs", []string{"mkfs.xfs", "-q"}},
}

// checkRuns runs the loader on each program, and makes filesystems.
func checkRuns(ctx context.Context, d definition, t target, root *os.Root) error {
	in := chroot{root.Name()}
	for _, name := range d.programs {
		program, err := in.find(name)
		if err != nil {
			return err
		}
		_, loader, err := t.needs(filepath.Join(root.Name(), program))
		if err != nil || loader == "" {
			return err
		}
		if _, err := in.run(ctx, loader, "--list", program); err != nil {
			return err
		}
	}
	return checkMkfs(ctx, in, root)
}

// checkMkfs makes a filesystem of each kind in a file and identifies it with blkid. An empty file
// replaces the mount table in /proc, because mounting /proc needs more rights than a build of an
// image has.
func checkMkfs(ctx context.Context, in chroot, root *os.Root) error {
	const image, proc = "tmp/check.img", "proc/self"
	defer root.Remove(image)   //nolint:errcheck // if it stays, the next build removes it
	defer root.RemoveAll(proc) //nolint:errcheck // as above
	if err := errors.Join(root.Mkdir(proc, 0o755), root.WriteFile(proc+"/mounts", nil, 0o644)); err != nil {
		return err
	}
	for _, f := range filesystems {
		if err := emptyFile(root, image, 512<<20); err != nil {
			return err
		}
		if _, err := in.run(ctx, append(f.mkfs, "/"+image)...); err != nil {
			return err
		}
		found, err := in.run(ctx, "blkid", "-p", "-o", "value", "-s", "TYPE", "/"+image)
		if err != nil {
			return err
		}
		if strings.TrimSpace(found) != f.name {
			return fmt.Errorf("blkid takes what %s made for %q", f.mkfs[0], found)
		}
	}
	return nil
}

func emptyFile(root *os.Root, name string, size int64) error {
	f, err := root.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// chroot runs programs with a directory as root.
type chroot struct{ dir string }

// run runs a program and returns its output. A user other than root becomes root in a user
// namespace, where chroot is allowed.
func (c chroot) run(ctx context.Context, args ...string) (string, error) {
	program, err := c.find(args[0])
	if err != nil {
		return "", err
	}
	command := exec.CommandContext(ctx, program, args[1:]...)
	command.Dir = "/"
	command.SysProcAttr = &syscall.SysProcAttr{Chroot: c.dir}
	if os.Geteuid() != 0 {
		command.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		command.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		command.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	out, err := debian.Output(command)
	if err != nil {
		return "", fmt.Errorf("in the root filesystem %s: %w", c.dir, err)
	}
	return out, nil
}

// find returns the path of a program.
func (c chroot) find(name string) (string, error) {
	if path.IsAbs(name) {
		return name, nil
	}
	for _, dir := range []string{"/usr/bin", "/usr/sbin"} {
		if _, err := os.Stat(filepath.Join(c.dir, dir, name)); err == nil {
			return path.Join(dir, name), nil
		}
	}
	return "", fmt.Errorf("%s: no program %s", c.dir, name)
}
