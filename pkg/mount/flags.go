package mount

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Flags are the flags of one mount, as statfs(2) returns them.
type Flags int64

// flag is one flag, as mount(8), statfs(2) and mount_setattr(2) name it.
type flag struct {
	name   string
	statfs Flags
	attr   uint64
}

// flagTable has the flags of a single mount. Options of the whole filesystem, which apply
// to all its mounts, are not included.
var flagTable = []flag{
	{"ro", unix.ST_RDONLY, unix.MOUNT_ATTR_RDONLY},
	{"nosuid", unix.ST_NOSUID, unix.MOUNT_ATTR_NOSUID},
	{"nodev", unix.ST_NODEV, unix.MOUNT_ATTR_NODEV},
	{"noexec", unix.ST_NOEXEC, unix.MOUNT_ATTR_NOEXEC},
	{"noatime", unix.ST_NOATIME, unix.MOUNT_ATTR_NOATIME},
	{"nodiratime", unix.ST_NODIRATIME, unix.MOUNT_ATTR_NODIRATIME},
	{"relatime", unix.ST_RELATIME, unix.MOUNT_ATTR_RELATIME},
}

// FlagNames returns the options that ParseFlags accepts, and rw.
func FlagNames() []string {
	names := []string{"rw"}
	for _, f := range flagTable {
		names = append(names, f.name)
	}
	return names
}

const (
	// ReadOnly is the flag of a read-only mount.
	ReadOnly   = Flags(unix.ST_RDONLY)
	atimeFlags = Flags(unix.ST_NOATIME | unix.ST_RELATIME)
	allFlags   = ReadOnly | atimeFlags | unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC | unix.ST_NODIRATIME
)

// ParseFlags returns the flags for mount options. The option rw is no flag and must not be
// among them. Errors: ErrInvalid.
func ParseFlags(options []string) (Flags, error) {
	var flags Flags
	for _, option := range options {
		i := slices.IndexFunc(flagTable, func(f flag) bool { return f.name == option })
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

// ReadOnly reports whether a mount with these flags is read-only.
func (f Flags) ReadOnly() bool { return f&ReadOnly != 0 }

// Over returns the flags of a mount that is requested with f on a filesystem mounted with
// base. A request cannot undo restrictions of the administrator in base.
func (f Flags) Over(base Flags) Flags {
	if f&atimeFlags != 0 {
		base &^= atimeFlags
	}
	return (f | base) & allFlags
}

// attributes returns the flags for mount_setattr(2). They replace all flags in flagTable.
func (f Flags) attributes() unix.MountAttr {
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

// String returns the flags as text, for example "nodev,relatime,rw".
func (f Flags) String() string {
	names := []string{}
	for _, line := range flagTable {
		if f&line.statfs != 0 {
			names = append(names, line.name)
		}
	}
	if !f.ReadOnly() {
		names = append(names, "rw")
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}
