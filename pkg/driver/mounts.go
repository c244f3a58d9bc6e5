package driver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

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

// mountFlag is one flag, as mount(8), statfs and mount_setattr have it.
type mountFlag struct {
	name   string
	statfs flagSet
	attr   uint64
}

// flagTable has what a class may ask for. Data options, which would hold for
// every volume of the filesystem, are not among them.
var flagTable = []mountFlag{
	{"ro", unix.ST_RDONLY, unix.MOUNT_ATTR_RDONLY},
	{"nosuid", unix.ST_NOSUID, unix.MOUNT_ATTR_NOSUID},
	{"nodev", unix.ST_NODEV, unix.MOUNT_ATTR_NODEV},
	{"noexec", unix.ST_NOEXEC, unix.MOUNT_ATTR_NOEXEC},
	{"noatime", unix.ST_NOATIME, unix.MOUNT_ATTR_NOATIME},
	{"nodiratime", unix.ST_NODIRATIME, unix.MOUNT_ATTR_NODIRATIME},
	{"relatime", unix.ST_RELATIME, unix.MOUNT_ATTR_RELATIME},
}

// mountFlags returns the mount options that hold for a mount, not for the whole
// filesystem, and so can be had for a volume.
func mountFlags() []string {
	names := []string{"rw"}
	for _, line := range flagTable {
		names = append(names, line.name)
	}
	return names
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

// attributes returns the flags as mount_setattr takes them: those of the mount
// before go, all that are known here.
func (f flagSet) attributes() unix.MountAttr {
	attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR__ATIME}
	for _, line := range flagTable {
		if line.statfs&atimeFlags == 0 {
			attr.Attr_clr |= line.attr
		}
		if f&line.statfs != 0 {
			attr.Attr_set |= line.attr
		}
	}
	if f&atimeFlags == 0 {
		attr.Attr_set |= unix.MOUNT_ATTR_STRICTATIME
	}
	return attr
}

// attach mounts the directory source at a target, with flags. The mount gets them
// before it has a place: where the kubelet's directory is shared, as it is with a
// driver in a container, it is the copies in other namespaces that pods see, and
// a remount, as mount(8) sets flags, reaches none of them. mount-utils knows of no
// other way. The target goes by a descriptor, which nobody can put another in the
// place of.
func attach(source string, flags flagSet, at target) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &fs.PathError{Op: "open_tree", Path: source, Err: err}
	}
	defer unix.Close(fd) // the mount, too, if it has found no place by then
	attr := flags.attributes()
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("set flags %s: %w", flags, err)
	}
	place, err := at.open()
	if err != nil {
		return err
	}
	defer place.Close()
	if err := unix.MoveMount(fd, "", int(place.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return &fs.PathError{Op: "move_mount", Path: at.path, Err: err}
	}
	return nil
}

// detach takes away the mount on top at a target. umount(8), and mount-utils by it, goes
// by the path, and follows the symbolic links that it has by then.
func detach(at target) error {
	parent, err := at.openParent()
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := unix.Unmount(filepath.Join(procPath(parent), filepath.Base(at.path)), unix.UMOUNT_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "umount", Path: at.path, Err: err}
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
	volume string // that root is in; empty for none
	whole  bool   // root is all of volume
}

// String tells people what is mounted.
func (m mounted) String() string { return fmt.Sprintf("%s (%s)", m.root, m.fsType) }

// unescape undoes how mountinfo writes blanks.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// tableCache is the mount table as it was last read. The kernel tells whether it has
// changed since, at a small part of the cost of reading it.
type tableCache struct {
	mu     sync.Mutex // protects what follows
	table  []mounted
	change *os.File // flagged by a change since it was opened or last asked; nil: nothing was read yet
}

var mountTables tableCache

// mountTable returns all mounts in the order in which they were made. It is not to
// be changed.
func mountTable() ([]mounted, error) {
	table, err := mountTables.read()
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	return table, nil
}

func (c *tableCache) read() ([]mounted, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if changed, err := c.changed(); !changed || err != nil {
		return c.table, err
	}
	lines, err := mount.ParseMountInfo(mountInfo)
	if err != nil {
		c.forget()
		return nil, err
	}
	c.table = make([]mounted, len(lines))
	for i, line := range lines {
		m := mounted{
			id: uint64(line.ID), device: fmt.Sprintf("%d:%d", line.Major, line.Minor),
			at: unescape.Replace(line.MountPoint), root: unescape.Replace(line.Root), fsType: line.FsType,
		}
		m.volume, m.whole = m.parse()
		c.table[i] = m
	}
	return c.table, nil
}

// changed asks before the table is read: what comes in between is told again.
func (c *tableCache) changed() (bool, error) {
	if c.change == nil {
		// Not os.Open, by which Go's own poller would take the flag now and then.
		fd, err := unix.Open(mountInfo, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return false, err
		}
		c.change = os.NewFile(uintptr(fd), mountInfo)
		return true, nil
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.change.Fd()), Events: unix.POLLPRI}}, 0)
		if !errors.Is(err, unix.EINTR) {
			return n > 0, err
		}
	}
}

// forget has the table read again: the flag of a change is gone once asked for.
func (c *tableCache) forget() {
	_ = c.change.Close()
	c.change, c.table = nil, nil
}

// top returns the mount on top at the target, false for none. It asks for the mount's ID:
// the table's path is that of the time when it was read, and a directory above may
// have another name since.
func (t target) top() (mounted, bool, error) {
	f, err := t.open()
	if errors.Is(err, fs.ErrNotExist) {
		return mounted{}, false, nil
	}
	if err != nil {
		return mounted{}, false, err
	}
	defer f.Close()
	return mountOf(int(f.Fd()), t.path)
}

// filesystemOf returns the device of the filesystem around a path as the mount
// table has it. stat tells another one for every subvolume.
func filesystemOf(path string) (string, error) {
	f, err := os.OpenFile(path, pathOnly|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	m, _, err := mountOf(int(f.Fd()), path)
	return m.device, err
}

// mountOf returns the mount that what is open as fd is on, and whether it is the root
// of that.
func mountOf(fd int, path string) (mounted, bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return mounted{}, false, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	table, err := mountTable()
	if err != nil {
		return mounted{}, false, err
	}
	for _, m := range table {
		if st.Mask&unix.STATX_MNT_ID != 0 && m.id == st.Mnt_id {
			return m, st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
		}
	}
	return mounted{}, false, fmt.Errorf("the mount that %s is on is not in the mount table", path)
}

// slotRoot finds the slot of a volume in the root of a mount. The first one
// counts: whatever follows it is within the volume, where pods choose the names,
// a newline in them too, and the kubelet mounts them for a subPath.
var slotRoot = regexp.MustCompile(`(?s)^.*?/(?:(?:active|view)/|removing/(?:active|view)-)([A-Za-z0-9][A-Za-z0-9_.-]*)/fs(/.*)?$`)

// parse returns the volume that a mount is of, and whether it is of the whole
// of it; an empty ID for anything else. The mount table tells by name, also of a
// volume that was deleted under the mount: its slot has moved to the removing
// area then, and the kernel appends a word.
func (m mounted) parse() (volume string, whole bool) {
	if m.fsType != fsType {
		return "", false
	}
	found := slotRoot.FindStringSubmatch(strings.TrimSuffix(m.root, "//deleted"))
	if found == nil {
		return "", false
	}
	return found[1], found[2] == ""
}

// isVolume reports whether a mount is that of the whole of a volume.
func (m mounted) isVolume(id string) bool { return m.whole && m.volume == id }

// uses reports whether a mount is that of a volume or of something within.
func (m mounted) uses(id string) bool { return m.volume != "" && m.volume == id }
