package testkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// Run runs a program. An error contains its output.
func Run(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Sparse creates a sparse file.
func Sparse(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// Loop is a filesystem in a sparse file.
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

// Mount mounts the filesystem by a loop device, which the last unmount frees. The device uses direct
// I/O if the filesystem of the file supports it. So, as on a disk, there is no second page cache.
func (l Loop) Mount(ctx context.Context, at string) (err error) {
	directIO := !l.Buffered
	for range 5 { // another process may take the free device first
		var device *os.File
		if device, err = l.attach(directIO); err != nil {
			directIO, err = false, fmt.Errorf("loop device on %s: %w", l.File, err)
			continue
		}
		err = unix.Mount(device.Name(), at, l.filesystem(), 0, strings.Join(l.Options, ","))
		if err != nil {
			err = fmt.Errorf("mount %s by %s: %w", l.File, device.Name(), err)
		}
		if err != nil && l.filesystem() == "btrfs" {
			// The kernel sometimes refuses to mount a copy of a mounted btrfs, and then mistakes the
			// device for that copy.
			err = errors.Join(err, Run(context.WithoutCancel(ctx), "btrfs", "device", "scan", "--forget", device.Name()))
		}
		if closed := device.Close(); err == nil || closed != nil { // the close frees the device unless it is mounted
			return errors.Join(err, closed)
		}
	}
	return err
}

// attach returns a loop device on the file. The kernel frees it when nobody uses it.
func (l Loop) attach(directIO bool) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, fmt.Errorf("find a free device: %w", err)
	}
	file, err := os.OpenFile(l.File, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", number), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	config := unix.LoopConfig{Fd: uint32(file.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], l.File)
	if directIO {
		config.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	if err := unix.IoctlLoopConfigure(int(device.Fd()), &config); err != nil {
		return nil, errors.Join(fmt.Errorf("set up %s: %w", device.Name(), err), device.Close())
	}
	return device, nil
}
