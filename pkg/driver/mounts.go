package driver

import (
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/mount-utils"
)

const (
	// mountInfo is the mount table of this process.
	mountInfo = "/proc/self/mountinfo"
	// fsType is the filesystem of every volume.
	fsType = "btrfs"
)

// flagSet are flags of one mount, as statfs tells them.
type flagSet int64

// mountFlag is one flag, as mount(8), statfs and the mount system call have it.
type mountFlag struct {
	name   string
	statfs flagSet
	mount  uintptr
}

// flagTable has what a class may ask for. Data options, which would hold for
// every volume of the filesystem, are not among them.
var flagTable = []mountFlag{
	{"ro", unix.ST_RDONLY, unix.MS_RDONLY},
	{"nosuid", unix.ST_NOSUID, unix.MS_NOSUID},
	{"nodev", unix.ST_NODEV, unix.MS_NODEV},
	{"noexec", unix.ST_NOEXEC, unix.MS_NOEXEC},
	{"noatime", unix.ST_NOATIME, unix.MS_NOATIME},
	{"nodiratime", unix.ST_NODIRATIME, unix.MS_NODIRATIME},
	{"relatime", unix.ST_RELATIME, unix.MS_RELATIME},
}

const (
	readOnlyFlag = flagSet(unix.ST_RDONLY)
	atimeFlags   = flagSet(unix.ST_NOATIME | unix.ST_RELATIME)
	allFlags     = readOnlyFlag | atimeFlags | unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC | unix.ST_NODIRATIME
)

// flagsOf returns the flags for mount options of request.go.
func flagsOf(options []string) (flagSet, error) {
	var flags flagSet
	for _, option := range options {
		i := slices.IndexFunc(flagTable, func(f mountFlag) bool { return f.name == option })
		if i < 0 {
			return 0, invalid("mount flag %q is not supported", option)
		}
		flags |= flagTable[i].statfs
	}
	if flags&atimeFlags == atimeFlags {
		return 0, invalid("mount flags noatime and relatime contradict each other")
	}
	return flags, nil
}

func (f flagSet) readOnly() bool { return f&readOnlyFlag != 0 }

// over returns the flags of a mount for which f is asked, of a pool mounted with
// those of base: what the administrator took away there is not given back.
func (f flagSet) over(base flagSet) flagSet {
	if f&atimeFlags != 0 {
		base &^= atimeFlags
	}
	return (f | base) & allFlags
}

// remount returns the flags as the mount system call takes them. One of those
// for access times is always among them: the call leaves them alone else.
func (f flagSet) remount() uintptr {
	var flags uintptr = unix.MS_REMOUNT | unix.MS_BIND
	for _, line := range flagTable {
		if f&line.statfs != 0 {
			flags |= line.mount
		}
	}
	if f&atimeFlags == 0 {
		flags |= unix.MS_STRICTATIME
	}
	return flags
}

// remount gives a mount its flags. It is a system call and not mount(8), which
// would add those of the pool, relatime to noatime for example.
func remount(path string, flags flagSet) error {
	if err := unix.Mount("", path, "", flags.remount(), ""); err != nil {
		return fmt.Errorf("set flags %s: %w", flags, err)
	}
	return nil
}

// String returns for example "nodev,relatime,rw".
func (f flagSet) String() string {
	names := []string{}
	for _, line := range flagTable {
		if f&line.statfs != 0 {
			names = append(names, line.name)
		}
	}
	if !f.readOnly() {
		names = append(names, "rw")
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}

// mounted is one line of the mount table.
type mounted struct {
	id     uint64
	device string // of the filesystem, the same for all its subvolumes
	at     string
	root   string // within its filesystem
	fsType string
}

// String tells people what is mounted.
func (m mounted) String() string { return fmt.Sprintf("%s (%s)", m.root, m.fsType) }

// unescape undoes how mountinfo writes blanks.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// mountTable returns all mounts in the order in which they were made.
func mountTable() ([]mounted, error) {
	lines, err := mount.ParseMountInfo(mountInfo)
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	table := make([]mounted, len(lines))
	for i, line := range lines {
		table[i] = mounted{
			id: uint64(line.ID), device: fmt.Sprintf("%d:%d", line.Major, line.Minor),
			at: unescape.Replace(line.MountPoint), root: unescape.Replace(line.Root), fsType: line.FsType,
		}
	}
	return table, nil
}

// topAt returns the mount on top at a path, false for none.
func topAt(at string) (mounted, bool, error) {
	table, err := mountTable()
	if err != nil {
		return mounted{}, false, err
	}
	for _, m := range slices.Backward(table) {
		if m.at == at {
			return m, true, nil
		}
	}
	return mounted{}, false, nil
}

// filesystemOf returns the device of the filesystem around a path as the mount
// table has it. stat tells another one for every subvolume.
func filesystemOf(table []mounted, path string) (string, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &st); err != nil {
		return "", &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	for _, m := range table {
		if st.Mask&unix.STATX_MNT_ID != 0 && m.id == st.Mnt_id {
			return m.device, nil
		}
	}
	return "", fmt.Errorf("the mount that %s is on is not in the mount table", path)
}

// slotRoot finds the slot of a volume in the root of a mount. The first one
// counts: whatever follows it is within the volume, where pods choose the names,
// and the kubelet mounts them for a subPath.
var slotRoot = regexp.MustCompile(`^.*?/(?:(?:active|view)/|removing/(?:active|view)-)([A-Za-z0-9][A-Za-z0-9_.-]*)/fs(/.*)?$`)

// volume returns the volume that a mount is of, and whether it is of the whole
// of it; an empty ID for anything else. The mount table tells by name, also of a
// volume that was deleted under the mount: its slot has moved to the removing
// area then, and the kernel appends a word.
func (m mounted) volume() (id string, whole bool) {
	found := slotRoot.FindStringSubmatch(strings.TrimSuffix(m.root, "//deleted"))
	if m.fsType != fsType || found == nil {
		return "", false
	}
	return found[1], found[2] == ""
}

// isVolume reports whether a mount is that of the whole of a volume.
func (m mounted) isVolume(id string) bool {
	found, whole := m.volume()
	return whole && found == id
}

// uses reports whether a mount is that of a volume or of something within.
func (m mounted) uses(id string) bool {
	found, _ := m.volume()
	return found != "" && found == id
}
