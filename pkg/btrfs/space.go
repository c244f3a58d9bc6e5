package btrfs

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Space is how full a filesystem is, in bytes. Total and Used are of the chunks
// allocated so far and count data once, however many copies its profile keeps;
// mixed chunks count as data. Unallocated is raw: what the present devices hold
// outside of any chunk, before copies are made.
type Space struct {
	Room

	DataTotal, DataUsed         int64
	MetadataTotal, MetadataUsed int64
	SystemTotal, SystemUsed     int64
	// The global reserve lies within metadata. Used above 0 for longer is the sign
	// of a filesystem out of metadata space.
	GlobalReserveTotal, GlobalReserveUsed int64

	Unallocated int64
}

// Room is what is left, in bytes.
type Room struct {
	Size      int64
	Available int64 // an estimate of df's, limits of quota ignored
	// Metadata is an estimate of what metadata can still take before the kernel
	// is left with its global reserve. Available does not show it: statfs gives 0 only
	// when the kernel has tried to allocate a chunk for metadata, in vain.
	Metadata int64
	// ReadOnly is also the state of a filesystem that the kernel stopped after an
	// error.
	ReadOnly bool
	// Stopped: it was the kernel, after an error. Until it has been unmounted everywhere and
	// mounted again, it cannot be written, nor be remounted read-write.
	Stopped bool
	// Backing is the sparse file below a device that bounds Available and Metadata, since its
	// own filesystem has less left than it may still want; nil where none does.
	Backing *Backing `json:",omitempty"`
}

// RoomOf returns the room on the filesystem around path (statfs, SPACE_INFO), and, where
// loop devices are below it, of the filesystems that their files lie in: see Backings for
// roots. It is much cheaper than SpaceOf.
func RoomOf(path string, roots ...string) (Room, error) {
	var space Space
	err := withDir("room of", path, func(fd int) error { return space.fill(fd, roots) })
	return space.Room, err
}

// fill reads all but Unallocated.
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

// stopped reports whether the kernel has stopped a filesystem that is read-only. No commit
// can be started on it then, while one that was mounted read-only has none to start. Of one
// that is writable elsewhere, and read-only in this mount alone, it would start a commit, and
// wait.
func stopped(fd int) bool {
	if !readOnlyEverywhere(fd) {
		return false
	}
	var transaction uint64
	_, err := ioctl(fd, iocStartSync, unsafe.Pointer(&transaction))
	return errors.Is(err, unix.EROFS)
}

// metadataLeft takes what is available beyond the chunks of data for space in no
// chunk yet, of which metadata may need twice as much (DUP).
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

// readOnlyEverywhere reports whether a filesystem is read-only whatever a mount of it says:
// a copy of its mount, which nobody sees, is as well, when its own flag is taken away. It is
// false where that cannot be known.
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

// SpaceOf returns how full the filesystem around path is (statfs, SPACE_INFO and
// DEV_INFO), with the Room of RoomOf.
func SpaceOf(path string, roots ...string) (Space, error) {
	var space Space
	err := withDir("space of", path, func(fd int) error {
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
		total, used := s.chunkCounters(info.flags)
		*total += int64(info.totalBytes)
		*used += int64(info.usedBytes)
	}
	return nil
}

// chunkCounters are those that chunks with these flags count towards. During a
// balance there are several kinds of chunk for each.
func (s *Space) chunkCounters(flags uint64) (total, used *int64) {
	switch {
	case flags&spaceGlobalReserve != 0:
		return &s.GlobalReserveTotal, &s.GlobalReserveUsed
	case flags&blockGroupData != 0:
		return &s.DataTotal, &s.DataUsed
	case flags&blockGroupMetadata != 0:
		return &s.MetadataTotal, &s.MetadataUsed
	default:
		return &s.SystemTotal, &s.SystemUsed
	}
}

// FilesystemInfo identifies a mounted filesystem.
type FilesystemInfo struct {
	// FSID is the one it is mounted by, under /sys/fs/btrfs. A copy mounted beside
	// its original (kernel 6.7) has a temporary one.
	FSID       UUID
	Generation uint64 // of the newest transaction, committed or running
	NodeSize   uint32 // bytes
	SectorSize uint32 // bytes
	NumDevices int
}

// Filesystem returns what identifies the filesystem around path (FS_INFO).
func Filesystem(path string) (FilesystemInfo, error) {
	var info FilesystemInfo
	err := withDir("filesystem info of", path, func(fd int) error {
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

// GrowToDevice grows the filesystem around path to the whole of one of its devices
// (RESIZE), and does nothing where it already fills it. Errors: EBUSY while a balance,
// device or other resize operation runs; EROFS.
func GrowToDevice(path string, device uint64) error {
	return withDir(fmt.Sprintf("grow to device %d the filesystem of", device), path, func(fd int) error {
		return resize(fd, fmt.Sprintf("%d:max", device))
	})
}

func resize(fd int, request string) error {
	var args volArgs
	copy(args.name[:], request)
	code, err := ioctl(fd, iocResize, unsafe.Pointer(&args))
	if err == nil && code > 0 {
		// BTRFS_ERROR_DEV_EXCL_RUN_IN_PROGRESS, the one code it returns.
		err = fmt.Errorf("another exclusive operation is running: %w", unix.EBUSY)
	}
	return err
}
