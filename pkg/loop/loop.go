package loop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// SectorSize is the size of the sectors of each device, in bytes. Requests that are smaller
// than a block of btrfs would not be direct I/O.
const SectorSize = 4096

// Device is a loop device with a file behind it, open.
type Device struct {
	file   *os.File
	number uint64
}

// Path returns the path of the device.
func (d *Device) Path() string { return d.file.Name() }

// Number returns the device number, as in Stat_t.Rdev of the device and in Stat_t.Dev of the
// files of a filesystem on it.
func (d *Device) Number() uint64 { return d.number }

// Close closes the device. If it was not kept and nobody else has it open, that detaches it.
func (d *Device) Close() { _ = d.file.Close() }

// attempts is the number of attempts to get a free device. Others may take the same one first.
const attempts = 50

// Attach puts a file behind a free device, with direct I/O and discard. It does not look
// whether the file has a device already: the caller locks the file and calls Find first.
// The device is read-only if the file was opened read-only.
func Attach(f *os.File) (*Device, error) {
	config := unix.LoopConfig{Fd: uint32(f.Fd()), Size: SectorSize}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	mode := os.O_RDWR
	if readOnly, err := isReadOnly(f); err != nil {
		return nil, err
	} else if readOnly {
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
		mode = os.O_RDONLY
	}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], filepath.Base(f.Name())) // for losetup
	for range attempts {
		d, err := openFree(mode)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(d.file.Fd()), &config)
		if err == nil {
			return d, nil
		}
		d.Close()
		if !errors.Is(err, unix.EBUSY) { // which means that somebody was faster
			return nil, fmt.Errorf("attach %s to %s: %w", f.Name(), d.Path(), err)
		}
	}
	return nil, fmt.Errorf("attach %s: no free loop device in %d attempts: %w", f.Name(), attempts, unix.EBUSY)
}

func isReadOnly(f *os.File) (bool, error) {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return false, &os.PathError{Op: "fcntl", Path: f.Name(), Err: err}
	}
	return flags&unix.O_ACCMODE == unix.O_RDONLY, nil
}

// openFree opens a device that has no file at the moment.
func openFree(mode int) (*Device, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop devices are not available (modprobe loop): %w", err)
	}
	defer control.Close()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, fmt.Errorf("free loop device: %w", err)
	}
	return open(n, mode)
}

func open(n, mode int) (*Device, error) {
	f, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), mode, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return &Device{f, st.Rdev}, nil
}

// Find returns the device of a file, nil for none. Several are an error, since writes to
// one do not reach those who read the other.
func Find(f *os.File) (*Device, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var found *Device
	for _, name := range names {
		n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(filepath.Dir(name))), "loop"))
		if err != nil || filepath.Base(readBacking(name)) != filepath.Base(f.Name()) {
			continue
		}
		d, err := open(n, os.O_RDONLY)
		if err != nil {
			continue // gone
		}
		if !d.isOf(st) {
			d.Close()
			continue
		}
		if found != nil {
			err := fmt.Errorf("%s has two loop devices, %s and %s: detach the one that nobody uses", f.Name(), found.Path(), d.Path())
			found.Close()
			d.Close()
			return nil, err
		}
		found = d
	}
	return found, nil
}

// Open opens the loop device with a device number.
func Open(number uint64) (*Device, error) {
	if unix.Major(number) != major {
		return nil, fmt.Errorf("device %d:%d is no loop device", unix.Major(number), unix.Minor(number))
	}
	return open(int(unix.Minor(number)), os.O_RDONLY)
}

// isOf reports whether the file behind the device is the one with these numbers.
func (d *Device) isOf(st unix.Stat_t) bool {
	info, err := unix.IoctlLoopGetStatus64(int(d.file.Fd()))
	return err == nil && info.Device == st.Dev && info.Inode == st.Ino
}

// IsReadOnly reports whether the device cannot be written.
func (d *Device) IsReadOnly() (bool, error) {
	info, err := d.status()
	return err == nil && info.Flags&unix.LO_FLAGS_READ_ONLY != 0, err
}

func (d *Device) status() (*unix.LoopInfo64, error) {
	info, err := unix.IoctlLoopGetStatus64(int(d.file.Fd()))
	if err != nil {
		return nil, fmt.Errorf("status of %s: %w", d.Path(), err)
	}
	return info, nil
}

// Keep makes the device stay when nobody has it open.
func (d *Device) Keep() error {
	info, err := d.status()
	if err != nil {
		return err
	}
	info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
	if err := unix.IoctlLoopSetStatus64(int(d.file.Fd()), info); err != nil {
		return fmt.Errorf("keep %s: %w", d.Path(), err)
	}
	return nil
}

// Detach detaches the file and closes the device. If somebody else has the device open, it
// stays until they close it.
func (d *Device) Detach() error {
	defer d.Close()
	err := unix.IoctlSetInt(int(d.file.Fd()), unix.LOOP_CLR_FD, 0)
	if err != nil && !errors.Is(err, unix.ENXIO) { // somebody else was faster
		return fmt.Errorf("detach %s: %w", d.Path(), err)
	}
	return nil
}

// Refresh makes the size of the device that of its file.
func (d *Device) Refresh() error {
	if err := unix.IoctlSetInt(int(d.file.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("refresh the size of %s: %w", d.Path(), err)
	}
	return nil
}

// major is the major device number of loop devices (LOOP_MAJOR).
const major = 7

// BackingName returns the path of the file behind a device, as the kernel shows it, without
// asking the file's filesystem; "" if there is none, or for another kind of device. Its
// beginning depends on where the file was opened, and its end is what the file and the
// directories above it are called now.
func BackingName(number uint64) string {
	if unix.Major(number) != major {
		return ""
	}
	return readBacking(fmt.Sprintf("/sys/dev/block/%d:%d/loop/backing_file", major, unix.Minor(number)))
}

func readBacking(file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), " (deleted)")
}
