package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// QuotaMode is the mode of quota accounting.
type QuotaMode string

// The modes.
const (
	QuotaNone   QuotaMode = "none"   // quota is off
	QuotaFull   QuotaMode = "full"   // counts exactly what each subvolume references
	QuotaSimple QuotaMode = "simple" // counts what each subvolume wrote, while any subvolume references it (Linux 6.7)
)

// QuotaStatus is the state of quota on a filesystem.
type QuotaStatus struct {
	Mode QuotaMode
	// Enabled is false while a quota tree exists but limits are not enforced.
	Enabled bool
	// Inconsistent is true when usage is wrong, and limits with it, until a rescan has
	// ended. Simple quota is never inconsistent.
	Inconsistent bool
	Rescanning   bool
}

// Quota returns the state of quota on the filesystem around dir. It reads the status item
// of the quota tree, which only commits write, and prefers the state in memory where sysfs
// and QUOTA_RESCAN_STATUS show it.
func Quota[D Dir](dir D) (QuotaStatus, error) {
	var status QuotaStatus
	err := withDir("quota status of", dir, func(fd int) (err error) {
		status, err = quotaStatus(fd)
		return err
	})
	return status, err
}

// ModeOf returns the quota mode of the filesystem around dir, at the cost of one lookup.
func ModeOf[D Dir](dir D) (QuotaMode, error) {
	var status QuotaStatus
	err := withDir("quota mode of", dir, func(fd int) (err error) {
		status, err = storedQuota(fd)
		return err
	})
	return status.Mode, err
}

func quotaStatus(fd int) (QuotaStatus, error) {
	status, err := storedQuota(fd)
	if err == nil {
		err = status.refresh(fd)
	}
	return status, err
}

// storedQuota reads the status item of the quota tree.
func storedQuota(fd int) (QuotaStatus, error) {
	key := itemKey{0, qgroupStatusKey, 0}
	item, there, err := findFirst(fd, quotaTree, key, key)
	switch {
	case there:
		return decodeStatus(item)
	case err == nil || isNotFound(err):
		return QuotaStatus{Mode: QuotaNone}, nil
	}
	return QuotaStatus{}, err
}

// decodeStatus reads struct btrfs_qgroup_status_item.
func decodeStatus(item treeItem) (QuotaStatus, error) {
	const flagsOffset = 16
	if len(item.data) < flagsOffset+8 {
		return QuotaStatus{}, item.tooShort(flagsOffset + 8)
	}
	flags := binary.LittleEndian.Uint64(item.data[flagsOffset:])
	status := QuotaStatus{
		Mode:         QuotaFull,
		Enabled:      flags&qgroupStatusOn != 0,
		Inconsistent: flags&qgroupStatusInconsistent != 0,
		Rescanning:   flags&qgroupStatusRescan != 0,
	}
	if flags&qgroupStatusSimple != 0 {
		status.Mode = QuotaSimple
	}
	return status, nil
}

// refresh replaces s with the state in the kernel's memory.
func (s *QuotaStatus) refresh(fd int) error {
	if s.Mode == QuotaNone {
		return nil
	}
	info, err := fsInfo(fd)
	if err != nil {
		return err
	}
	if state := sysfsFlag(info.fsid, "qgroups/inconsistent"); state != flagUnknown {
		s.Inconsistent = state == flagSet
	}
	var args quotaRescanArgs
	if _, err := ioctl(fd, iocQuotaRescanStat, unsafe.Pointer(&args)); err != nil {
		return err
	}
	s.Rescanning = args.flags != 0
	return nil
}

// EnableQuota turns quota on for the whole filesystem around dir (QUOTA_CTL) and commits,
// unless it is on in this mode. Full quota starts a rescan: see WaitRescan. Errors:
// ErrQuotaMode, ErrUnsupported, EROFS; EAGAIN when quota was turned off meanwhile.
func EnableQuota[D Dir](dir D, mode QuotaMode) error {
	return withDir("enable "+string(mode)+" quota on", dir, func(fd int) error {
		if on, err := quotaIs(fd, mode); on || err != nil {
			return err
		}
		if err := enableQuota(fd, mode); err != nil {
			return err
		}
		// The kernel reports success, too, when another process has just enabled another
		// mode.
		if on, err := quotaIs(fd, mode); on || err != nil {
			return err
		}
		return fmt.Errorf("quota was disabled meanwhile: %w", unix.EAGAIN)
	})
}

// quotaIs reports whether quota is on in this mode. In another mode it returns
// ErrQuotaMode.
func quotaIs(fd int, mode QuotaMode) (bool, error) {
	status, err := storedQuota(fd)
	if err != nil || status.Mode == QuotaNone {
		return false, err
	}
	if status.Mode != mode {
		return false, fmt.Errorf("%w: wanted %s, found %s", ErrQuotaMode, mode, status.Mode)
	}
	return true, nil
}

func enableQuota(fd int, mode QuotaMode) error {
	switch mode {
	case QuotaFull:
		return quotaCtl(fd, quotaCtlEnable)
	case QuotaSimple:
		err := quotaCtl(fd, quotaCtlEnableSimple)
		if errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("simple quota needs Linux 6.7: %w (%w)", ErrUnsupported, err)
		}
		return err
	}
	return fmt.Errorf("unknown quota mode: %w", unix.EINVAL)
}

// DisableQuota turns quota off for the whole filesystem around dir, if it is on, and
// removes all qgroups and limits.
func DisableQuota[D Dir](dir D) error {
	return withDir("disable quota on", dir, func(fd int) error {
		err := quotaCtl(fd, quotaCtlDisable)
		if errors.Is(err, unix.ENOTCONN) {
			return nil
		}
		return err
	})
}

func quotaCtl(fd int, cmd uint64) error {
	args := quotaCtlArgs{cmd: cmd}
	_, err := ioctl(fd, iocQuotaCtl, unsafe.Pointer(&args))
	return err
}

// RescanQuota starts a rescan of full quota (QUOTA_RESCAN), unless one runs. Errors: EINVAL
// or ENOTCONN when quota is simple or off.
func RescanQuota[D Dir](dir D) error {
	return withDir("rescan quota of", dir, func(fd int) error {
		var args quotaRescanArgs
		_, err := ioctl(fd, iocQuotaRescan, unsafe.Pointer(&args))
		if errors.Is(err, unix.EINPROGRESS) {
			return nil
		}
		return err
	})
}

// WaitRescan waits until no rescan runs (QUOTA_RESCAN_WAIT). It can take minutes and cannot
// be interrupted.
func WaitRescan[D Dir](dir D) error {
	return withDir("wait for quota rescan of", dir, func(fd int) error {
		_, err := ioctl(fd, iocQuotaRescanWait, nil)
		return err
	})
}
