package mount

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// pathOnly opens a file for stat, not for its content.
const pathOnly = unix.O_PATH | unix.O_CLOEXEC

// procPath returns a path to an open file that stays valid after a rename.
func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// Place identifies a directory or a device file, and contains the flags of its mount.
type Place struct {
	Device, Inode uint64
	Flags         Flags
}

// Same reports whether p and other are the same directory or device file. Every btrfs subvolume has a
// device number of its own.
func (p Place) Same(other Place) bool { return p.Device == other.Device && p.Inode == other.Inode }

// PlaceAt returns the Place at a path. It follows symbolic links.
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
