package btrfs

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The structures below are those of linux/btrfs.h. All fields have a fixed width and
// natural alignment, and padding is explicit. So amd64 and arm64 have the same layout. Only
// fields that this package uses have names.

const (
	pathNameMax   = 4087
	subvolNameMax = 4039
	volNameMax    = 255
	devicePathMax = 1024
	maxRootRefs   = 255
	devStatsMax   = 5

	inoLookupUserPathMax = 4080 - volNameMax - 1
)

// volArgs is struct btrfs_ioctl_vol_args.
type volArgs struct {
	fd   int64
	name [pathNameMax + 1]byte
}

// volArgsV2 is struct btrfs_ioctl_vol_args_v2.
type volArgsV2 struct {
	fd      int64
	transID uint64
	flags   uint64
	_       [4]uint64
	name    [subvolNameMax + 1]byte
}

// timespec is struct btrfs_ioctl_timespec.
type timespec struct {
	sec  uint64
	nsec uint32
	_    uint32
}

// subvolInfoArgs is struct btrfs_ioctl_get_subvol_info_args.
type subvolInfoArgs struct {
	treeID       uint64
	name         [volNameMax + 1]byte
	parentID     uint64
	dirID        uint64
	generation   uint64
	flags        uint64
	uuid         UUID
	parentUUID   UUID
	receivedUUID UUID
	ctransID     uint64
	otransID     uint64
	stransID     uint64
	rtransID     uint64
	ctime        timespec
	otime        timespec
	stime        timespec
	rtime        timespec
	_            [8]uint64
}

// rootRef is one entry of struct btrfs_ioctl_get_subvol_rootref_args.
type rootRef struct {
	treeID uint64
	dirID  uint64
}

// rootRefArgs is struct btrfs_ioctl_get_subvol_rootref_args.
type rootRefArgs struct {
	minTreeID uint64
	refs      [maxRootRefs]rootRef
	numItems  uint8
	_         [7]uint8
}

// inoLookupUserArgs is struct btrfs_ioctl_ino_lookup_user_args.
type inoLookupUserArgs struct {
	dirID  uint64
	treeID uint64
	name   [volNameMax + 1]byte
	path   [inoLookupUserPathMax]byte
}

// inoLookupArgs is struct btrfs_ioctl_ino_lookup_args.
type inoLookupArgs struct {
	treeID   uint64
	objectID uint64
	name     [4080]byte
}

// searchKey is struct btrfs_ioctl_search_key.
type searchKey struct {
	treeID      uint64
	minObjectID uint64
	maxObjectID uint64
	minOffset   uint64
	maxOffset   uint64
	minTransID  uint64
	maxTransID  uint64
	minType     uint32
	maxType     uint32
	nrItems     uint32
	_           uint32
	_           [4]uint64
}

// searchHeader is struct btrfs_ioctl_search_header.
type searchHeader struct {
	_        [3]uint64 // transid, objectid, offset
	itemType uint32
	length   uint32
}

// searchArgs is struct btrfs_ioctl_search_args_v2, the head of a larger buffer.
type searchArgs struct {
	key     searchKey
	bufSize uint64
}

// spaceInfo is struct btrfs_ioctl_space_info.
type spaceInfo struct {
	flags      uint64
	totalBytes uint64
	usedBytes  uint64
}

// spaceArgsHead is struct btrfs_ioctl_space_args without its array of variable length.
type spaceArgsHead struct {
	slots       uint64
	totalSpaces uint64
}

// spaceArgs has room for all combinations of type and profile that a running balance can
// leave.
type spaceArgs struct {
	spaceArgsHead
	spaces [64]spaceInfo
}

// devInfoArgs is struct btrfs_ioctl_dev_info_args.
type devInfoArgs struct {
	devID      uint64
	uuid       UUID
	bytesUsed  uint64
	totalBytes uint64
	_          [379]uint64
	path       [devicePathMax]byte
}

// devStatsArgs is struct btrfs_ioctl_get_dev_stats.
type devStatsArgs struct {
	devID   uint64
	nrItems uint64
	flags   uint64
	values  [devStatsMax]uint64
	_       [128 - 2 - devStatsMax]uint64
}

// fsInfoArgs is struct btrfs_ioctl_fs_info_args.
type fsInfoArgs struct {
	maxID          uint64
	numDevices     uint64
	fsid           UUID
	nodeSize       uint32
	sectorSize     uint32
	cloneAlignment uint32
	csumType       uint16
	csumSize       uint16
	flags          uint64
	generation     uint64
	metadataUUID   UUID
	_              [944]byte
}

// features is struct btrfs_ioctl_feature_flags.
type features struct {
	compat   uint64
	compatRO uint64
	incompat uint64
}

// quotaCtlArgs is struct btrfs_ioctl_quota_ctl_args.
type quotaCtlArgs struct {
	cmd    uint64
	status uint64
}

// quotaRescanArgs is struct btrfs_ioctl_quota_rescan_args.
type quotaRescanArgs struct {
	flags    uint64
	progress uint64
	_        [6]uint64
}

// qgroupAssignArgs is struct btrfs_ioctl_qgroup_assign_args.
type qgroupAssignArgs struct {
	assign uint64
	src    uint64
	dst    uint64
}

// qgroupCreateArgs is struct btrfs_ioctl_qgroup_create_args.
type qgroupCreateArgs struct {
	create   uint64
	qgroupID uint64
}

// qgroupLimitArgs is struct btrfs_ioctl_qgroup_limit_args.
type qgroupLimitArgs struct {
	qgroupID uint64
	flags    uint64
	maxRfer  uint64
	maxExcl  uint64
	rsvRfer  uint64
	rsvExcl  uint64
}

// The encoding of asm-generic/ioctl.h. amd64 and arm64 share it.
const (
	iocWrite = 1 << 30
	iocRead  = 2 << 30
	iocMagic = 0x94 << 8
)

const (
	iocResize          = iocWrite | iocMagic | 3 | unsafe.Sizeof(volArgs{})<<16
	iocTreeSearchV2    = iocRead | iocWrite | iocMagic | 17 | unsafe.Sizeof(searchArgs{})<<16
	iocInoLookup       = iocRead | iocWrite | iocMagic | 18 | unsafe.Sizeof(inoLookupArgs{})<<16
	iocSpaceInfo       = iocRead | iocWrite | iocMagic | 20 | unsafe.Sizeof(spaceArgsHead{})<<16
	iocStartSync       = iocRead | iocMagic | 24 | unsafe.Sizeof(uint64(0))<<16
	iocSubvolGetFlags  = iocRead | iocMagic | 25 | unsafe.Sizeof(uint64(0))<<16
	iocSubvolSetFlags  = iocWrite | iocMagic | 26 | unsafe.Sizeof(uint64(0))<<16
	iocDevInfo         = iocRead | iocWrite | iocMagic | 30 | unsafe.Sizeof(devInfoArgs{})<<16
	iocFsInfo          = iocRead | iocMagic | 31 | unsafe.Sizeof(fsInfoArgs{})<<16
	iocQuotaCtl        = iocRead | iocWrite | iocMagic | 40 | unsafe.Sizeof(quotaCtlArgs{})<<16
	iocQgroupAssign    = iocWrite | iocMagic | 41 | unsafe.Sizeof(qgroupAssignArgs{})<<16
	iocQgroupCreate    = iocWrite | iocMagic | 42 | unsafe.Sizeof(qgroupCreateArgs{})<<16
	iocQgroupLimit     = iocRead | iocMagic | 43 | unsafe.Sizeof(qgroupLimitArgs{})<<16
	iocQuotaRescan     = iocWrite | iocMagic | 44 | unsafe.Sizeof(quotaRescanArgs{})<<16
	iocQuotaRescanStat = iocRead | iocMagic | 45 | unsafe.Sizeof(quotaRescanArgs{})<<16
	iocQuotaRescanWait = iocMagic | 46
	iocGetDevStats     = iocRead | iocWrite | iocMagic | 52 | unsafe.Sizeof(devStatsArgs{})<<16
	iocGetSubvolInfo   = iocRead | iocMagic | 60 | unsafe.Sizeof(subvolInfoArgs{})<<16
	iocGetSubvolRefs   = iocRead | iocWrite | iocMagic | 61 | unsafe.Sizeof(rootRefArgs{})<<16
	iocInoLookupUser   = iocRead | iocWrite | iocMagic | 62 | unsafe.Sizeof(inoLookupUserArgs{})<<16
	iocGetFeatures     = iocRead | iocMagic | 57 | unsafe.Sizeof(features{})<<16
	iocSetFeatures     = iocWrite | iocMagic | 57 | 2*unsafe.Sizeof(features{})<<16
	iocSync            = iocMagic | 8
	iocSnapCreateV2    = iocWrite | iocMagic | 23 | unsafe.Sizeof(volArgsV2{})<<16
	iocSnapDestroyV2   = iocWrite | iocMagic | 63 | unsafe.Sizeof(volArgsV2{})<<16
)

// Object IDs, item keys and flags of linux/btrfs_tree.h and linux/btrfs.h.
const (
	rootTree         = 1
	topLevelSubvol   = 5
	quotaTree        = 8
	firstFree        = 256
	lastFree         = ^uint64(255) // -256
	inodeItemKey     = 1
	inodeRefKey      = 12
	rootItemKey      = 132
	rootBackrefKey   = 144
	qgroupStatusKey  = 240
	qgroupInfoKey    = 242
	qgroupLimitKey   = 244
	qgroupRelation   = 246
	rootSubvolRDOnly = 1 << 0 // in a root item and in GET_SUBVOL_INFO
	subvolRDOnly     = 1 << 1 // in SUBVOL_GETFLAGS and SUBVOL_SETFLAGS

	fsInfoGeneration = 1 << 1

	blockGroupData     = 1 << 0
	blockGroupSystem   = 1 << 1
	blockGroupMetadata = 1 << 2
	spaceGlobalReserve = 1 << 49

	quotaCtlEnable  = 1
	quotaCtlDisable = 2
	// Since kernel 6.7; older headers lack it.
	quotaCtlEnableSimple = 4

	qgroupStatusOn           = 1 << 0
	qgroupStatusRescan       = 1 << 1
	qgroupStatusInconsistent = 1 << 2
	// Since kernel 6.7; older headers lack it.
	qgroupStatusSimple = 1 << 3

	qgroupLimitMaxRfer = 1 << 0
	qgroupLimitRsvExcl = 1 << 3
)

// Inode flags of linux/fs.h.
const (
	fsImmutable = 0x00000010
	fsAppend    = 0x00000020
	fsNoCow     = 0x00800000
)

// ioctl returns the result of the system call, and repeats it after EINTR. Some ioctls
// return a positive number with a meaning of its own, which is no error.
func ioctl(fd int, request uintptr, arg unsafe.Pointer) (int, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
		switch errno {
		case 0:
			return int(r), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// inodeFlags returns the FS_*_FL flags of an open file.
func inodeFlags(fd int) (uint32, error) {
	var flags uint32
	_, err := ioctl(fd, unix.FS_IOC_GETFLAGS, unsafe.Pointer(&flags))
	return flags, err
}

// changeInodeFlags sets and clears flags of an open file, and keeps all others. It writes
// only when a flag changes: on a read-only subvolume every write fails.
func changeInodeFlags(fd int, set, clear uint32) error {
	old, err := inodeFlags(fd)
	if err != nil {
		return err
	}
	flags := old&^clear | set
	if flags == old {
		return nil
	}
	_, err = ioctl(fd, unix.FS_IOC_SETFLAGS, unsafe.Pointer(&flags))
	return err
}
