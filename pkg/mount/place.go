package mount

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// pathOnly opens for a look at what is there, not into it.
const pathOnly = unix.O_PATH | unix.O_CLOEXEC

// procPath is a path to what is open, whatever happens to its name.
func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// Place identifies a directory, and says how it is mounted.
type Place struct {
	Device, Inode uint64
	Flags         Flags
}

// Same reports whether both are one directory. Every btrfs subvolume has a device number
// of its own.
func (p Place) Same(other Place) bool { return p.Device == other.Device && p.Inode == other.Inode }

// PlaceAt returns what is at a path.
func PlaceAt(path string) (Place, error) {
	f, err := os.OpenFile(path, pathOnly, 0)
	if err != nil {
		return Place{}, err
	}
	defer f.Close()
	return placeOf(f)
}

func placeOf(f *os.File) (Place, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return Place{}, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &sfs); err != nil {
		return Place{}, &os.PathError{Op: "statfs", Path: f.Name(), Err: err}
	}
	return Place{uint64(st.Dev), st.Ino, Flags(sfs.Flags) & allFlags}, nil
}
