package btrfs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Device is one device of a filesystem.
type Device struct {
	ID   uint64
	UUID UUID
	Path string // as the kernel reports it; "" if the device was never seen
	Size int64  // bytes of the device that belong to the filesystem
	Used int64  // bytes allocated to chunks

	// Errors since the filesystem was made or the counters were reset, across mounts.
	WriteErrors      uint64
	ReadErrors       uint64
	FlushErrors      uint64
	CorruptionErrors uint64
	GenerationErrors uint64

	Missing bool
}

// Errors returns the sum of all error counters.
func (d Device) Errors() uint64 {
	return d.WriteErrors + d.ReadErrors + d.FlushErrors + d.CorruptionErrors + d.GenerationErrors
}

// Devices returns the devices of the filesystem around dir, ordered by ID (DEV_INFO,
// GET_DEV_STATS). The target of a running replace is left out.
func Devices[D Dir](dir D) ([]Device, error) {
	var found []Device
	err := withDir("devices of", dir, func(fd int) (err error) {
		found, err = devices(fd)
		return err
	})
	return found, err
}

func devices(fd int) ([]Device, error) {
	info, err := fsInfo(fd)
	if err != nil {
		return nil, err
	}
	var found []Device
	for id := uint64(1); id <= info.maxID; id++ {
		d, err := device(fd, info.fsid, id)
		if errors.Is(err, unix.ENODEV) {
			continue // the IDs of removed devices leave gaps
		}
		if err != nil {
			return nil, fmt.Errorf("device %d: %w", id, err)
		}
		found = append(found, d)
	}
	return found, nil
}

func device(fd int, fsid UUID, id uint64) (Device, error) {
	args := devInfoArgs{devID: id}
	if _, err := ioctl(fd, iocDevInfo, unsafe.Pointer(&args)); err != nil {
		return Device{}, err
	}
	d := Device{
		ID:   id,
		UUID: args.uuid,
		Path: cString(args.path[:]),
		Size: int64(args.totalBytes),
		Used: int64(args.bytesUsed),
	}
	d.Missing = d.Path == "" || sysfsFlag(fsid, fmt.Sprintf("devinfo/%d/missing", id)) == flagSet
	err := d.addStats(fd)
	return d, err
}

func (d *Device) addStats(fd int) error {
	args := devStatsArgs{devID: d.ID, nrItems: devStatsMax}
	_, err := ioctl(fd, iocGetDevStats, unsafe.Pointer(&args))
	if errors.Is(err, unix.ENODEV) {
		return nil // a missing device without counters yet
	}
	d.WriteErrors = args.values[0]
	d.ReadErrors = args.values[1]
	d.FlushErrors = args.values[2]
	d.CorruptionErrors = args.values[3]
	d.GenerationErrors = args.values[4]
	return err
}

// sysfsState is a boolean in sysfs. It is unknown on older kernels and in containers
// without /sys.
type sysfsState int

const (
	flagUnknown sysfsState = iota
	flagClear
	flagSet
)

func sysfsFlag(fsid UUID, name string) sysfsState {
	text, err := os.ReadFile("/sys/fs/btrfs/" + fsid.String() + "/" + name)
	switch {
	case err != nil:
		return flagUnknown
	case strings.TrimSpace(string(text)) == "0":
		return flagClear
	default:
		return flagSet
	}
}
