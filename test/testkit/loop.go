package testkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Run runs a program. An error has what it printed.
func Run(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Sparse makes a file that takes no space yet.
func Sparse(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// Loop is a filesystem in a file.
type Loop struct {
	File     string
	Type     string   // of filesystem; empty: btrfs
	Options  []string // of the mount
	Buffered bool     // no direct I/O
}

func (l Loop) filesystem() string {
	if l.Type == "" {
		return "btrfs"
	}
	return l.Type
}

// Make makes the filesystem in a new sparse file.
func (l Loop) Make(ctx context.Context, size int64, mkfsArgs ...string) error {
	if err := Sparse(l.File, size); err != nil {
		return err
	}
	return Run(ctx, "mkfs."+l.filesystem(), append(append([]string{"-q", "-K"}, mkfsArgs...), l.File)...)
}

// Mount mounts the filesystem by a loop device, which the last unmount frees. Direct I/O
// passes reads and writes on without a page cache of the device's own, as a disk would,
// where the filesystem below the file can do that.
func (l Loop) Mount(ctx context.Context, at string) (err error) {
	directIO := "on"
	if l.Buffered {
		directIO = "off"
	}
	args := []string{"-t", l.filesystem()}
	if len(l.Options) > 0 {
		args = append(args, "-o", strings.Join(l.Options, ","))
	}
	for range 5 { // others may take the free device that losetup saw first
		var out []byte
		out, err = exec.CommandContext(ctx, "losetup", "--find", "--show", "--direct-io="+directIO, l.File).Output()
		if err != nil {
			directIO, err = "off", fmt.Errorf("losetup %s: %w", l.File, err)
			continue
		}
		device := strings.TrimSpace(string(out))
		err = Run(ctx, "mount", append(args, device, at)...)
		always := context.WithoutCancel(ctx)
		if err != nil && l.filesystem() == "btrfs" {
			// The kernel now and then refuses to mount a copy of a btrfs that is mounted, and
			// takes the device for that copy from then on.
			err = errors.Join(err, Run(always, "btrfs", "device", "scan", "--forget", device))
		}
		if detached := Run(always, "losetup", "--detach", device); err == nil || detached != nil {
			return errors.Join(err, detached)
		}
	}
	return err
}
