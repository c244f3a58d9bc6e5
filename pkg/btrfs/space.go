package btrfs

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Space is the usage of a filesystem, in bytes. Total and Used count allocated chunks, and
// data once, however many copies exist. Mixed chunks count as data. Unallocated counts raw
// bytes outside of chunks on present devices.
type Space struct {
	Room

	DataTotal, DataUsed         int64
	MetadataTotal, MetadataUsed int64
	SystemTotal, SystemUsed     int64
	// The global reserve is part of metadata. If GlobalReserveUsed stays above 0, space for
	// metadata has run out.
	GlobalReserveTotal, GlobalReserveUsed int64

	Unallocated int64
}

// Room is the size and the free space of a filesystem, in bytes.
type Room struct {
	Size      int64
	Available int64 // as df estimates it, without quota
	// Metadata estimates what metadata can take before only the global reserve is left.
	// Available does not show this: statfs returns 0 only after the kernel failed to
	// allocate a metadata chunk.
	Metadata int64
	// ReadOnly is also true when the kernel stopped the filesystem after an error.
	ReadOnly bool
	// Stopped reports that the kernel made the filesystem read-only after an error. To
	// write again it must be unmounted everywhere and mounted again.
	Stopped bool
	// Backing is the sparse file that bounds Available and Metadata, because its filesystem
	// has less space than the file may still take, or nil.
	Backing *Backing `json:",omitempty"`
}

// RoomOf returns the free space of the filesystem around dir (statfs, SPACE_INFO), bounded
// by that of files behind loop devices: see Backings for roots. It is much cheaper than
// SpaceOf.
func RoomOf[D Dir](dir D, roots ...string) (Room, error) {
	var space Space
	err := withDir("room of", dir, func(fd int) error { return space.fill(fd, roots) })
	return space.Room, err
}

// fill reads everything but Unallocated.
func (s *Space) fill(fd int, roots []string) (err error) {
	if s.Room, err = statfs(fd); err != nil {
		return err
	}
	if err := s.addChunks(fd); err != nil {
		return err
	}
	s.Metadata = s.metadataLeft()
	info, err := fsInfo(fd)
	if err != nil {
		return err
	}
	files, err := backings(info.fsid, roots)
	s.boundBy(files)
	s.Stopped = s.ReadOnly && stopped(fd)
	return err
}

// stopped reports whether the kernel has stopped a read-only filesystem: then it refuses to
// start a commit. If it was mounted read-only START_SYNC has nothing to commit and
// succeeds. If only this mount is read-only START_SYNC would commit and wait, so stopped
// does not call it.
func stopped(fd int) bool {
	if !readOnlyEverywhere(fd) {
		return false
	}
	var transaction uint64
	_, err := ioctl(fd, iocStartSync, unsafe.Pointer(&transaction))
	return errors.Is(err, unix.EROFS)
}

// metadataLeft estimates Metadata. Available space beyond the data chunks counts as
// unallocated. Metadata may need twice as much of it (DUP).
func (s *Space) metadataLeft() int64 {
	if s.MetadataTotal == 0 { // mixed chunks
		return s.Available
	}
	free := s.MetadataTotal - s.MetadataUsed - s.GlobalReserveTotal
	return max(0, free) + max(0, s.Available-(s.DataTotal-s.DataUsed))/2
}

func statfs(fd int) (Room, error) {
	var st unix.Statfs_t
	for {
		err := unix.Fstatfs(fd, &st)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return Room{
			Size:      int64(st.Blocks) * int64(st.Bsize),
			Available: int64(st.Bavail) * int64(st.Bsize),
			ReadOnly:  st.Flags&unix.ST_RDONLY != 0,
		}, err
	}
}

// readOnlyEverywhere reports whether the filesystem itself, not only a mount, is read-only.
// It clears the read-only flag of a private clone of the mount and looks whether the clone
// is still read-only. It returns false where the kernel does not allow that.
func readOnlyEverywhere(fd int) bool {
	tree, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return false
	}
	defer unix.Close(tree)
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return false
	}
	room, err := statfs(tree)
	return err == nil && room.ReadOnly
}

// SpaceOf returns the usage of the filesystem around dir (statfs, SPACE_INFO and
// DEV_INFO). See RoomOf for roots.
func SpaceOf[D Dir](dir D, roots ...string) (Space, error) {
	var space Space
	err := withDir("space of", dir, func(fd int) error {
		if err := space.fill(fd, roots); err != nil {
			return err
		}
		devices, err := devices(fd)
		for _, d := range devices {
			if !d.Missing {
				space.Unallocated += d.Size - d.Used
			}
		}
		return err
	})
	return space, err
}

func (s *Space) addChunks(fd int) error {
	var args spaceArgs
	args.slots = uint64(len(args.spaces))
	if _, err := ioctl(fd, iocSpaceInfo, unsafe.Pointer(&args)); err != nil {
		return err
	}
	for _, info := range args.spaces[:min(args.totalSpaces, args.slots)] {
		total, used := &s.SystemTotal, &s.SystemUsed
		switch { // during a balance several kinds of chunk share one pair of counters
		case info.flags&spaceGlobalReserve != 0:
			total, used = &s.GlobalReserveTotal, &s.GlobalReserveUsed
		case info.flags&blockGroupData != 0:
			total, used = &s.DataTotal, &s.DataUsed
		case info.flags&blockGroupMetadata != 0:
			total, used = &s.MetadataTotal, &s.MetadataUsed
		}
		*total += int64(info.totalBytes)
		*used += int64(info.usedBytes)
	}
	return nil
}

// FilesystemInfo identifies a mounted filesystem.
type FilesystemInfo struct {
	// FSID is the ID of the mounted filesystem in /sys/fs/btrfs. A copy that is mounted
	// beside its original (kernel 6.7) has a temporary one.
	FSID       UUID
	Generation uint64 // of the newest transaction, committed or running
	NodeSize   uint32 // bytes
	SectorSize uint32 // bytes
	NumDevices int
}

// Filesystem returns the identity of the filesystem around dir (FS_INFO).
func Filesystem[D Dir](dir D) (FilesystemInfo, error) {
	var info FilesystemInfo
	err := withDir("filesystem info of", dir, func(fd int) error {
		args, err := fsInfo(fd)
		info = FilesystemInfo{
			FSID:       args.fsid,
			Generation: args.generation,
			NodeSize:   args.nodeSize,
			SectorSize: args.sectorSize,
			NumDevices: int(args.numDevices),
		}
		return err
	})
	return info, err
}

func fsInfo(fd int) (fsInfoArgs, error) {
	args := fsInfoArgs{flags: fsInfoGeneration}
	_, err := ioctl(fd, iocFsInfo, unsafe.Pointer(&args))
	return args, err
}

// GrowToDevice grows the filesystem around dir to the whole size of one of its devices
// (RESIZE), if it is smaller. Errors: EBUSY while a balance, a device operation or another
// resize runs; EROFS.
func GrowToDevice[D Dir](dir D, device uint64) error {
	return withDir(fmt.Sprintf("grow to device %d the filesystem of", device), dir, func(fd int) error {
		return resize(fd, fmt.Sprintf("%d:max", device))
	})
}

func resize(fd int, request string) error {
	var args volArgs
	copy(args.name[:], request)
	code, err := ioctl(fd, iocResize, unsafe.Pointer(&args))
	if err == nil && code > 0 {
		// BTRFS_ERROR_DEV_EXCL_RUN_IN_PROGRESS is the only code that RESIZE returns.
		err = fmt.Errorf("another exclusive operation is running: %w", unix.EBUSY)
	}
	return err
}
