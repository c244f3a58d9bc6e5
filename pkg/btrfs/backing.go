package btrfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Backing is the file behind a loop device. A sparse file takes space from its own
// filesystem as btrfs writes. When that is full, writes to the device fail, and btrfs stops
// although it has free space itself.
type Backing struct {
	Device    string // path of the loop device
	Path      string // path of the file
	Size      int64  // of the file, in bytes
	Allocated int64  // bytes that have space on disk
	Available int64  // bytes that are free in its filesystem

	filesystem uint64 // device number
}

// Unallocated returns the bytes that the file may still take from its filesystem.
func (b Backing) Unallocated() int64 { return max(0, b.Size-b.Allocated) }

// Backings returns the files behind the loop devices of the filesystem around dir. The
// kernel reports a path as seen by the process that attached the file, perhaps in the mount
// namespace of an ended container. So each file is looked up below "/" and below each of
// roots. Files that are not found are left out.
func Backings[D Dir](dir D, roots ...string) ([]Backing, error) {
	var found []Backing
	err := withDir("backing files of", dir, func(fd int) error {
		info, err := fsInfo(fd)
		if err == nil {
			found, err = backings(info.fsid, roots)
		}
		return err
	})
	return found, err
}

// backings reads sysfs. Without sysfs it returns nothing.
func backings(fsid UUID, roots []string) ([]Backing, error) {
	devices := "/sys/fs/btrfs/" + fsid.String() + "/devices"
	names, err := os.ReadDir(devices)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var found []Backing
	for _, name := range names {
		if !strings.HasPrefix(name.Name(), "loop") {
			continue
		}
		dir, err := filepath.EvalSymlinks(filepath.Join(devices, name.Name()))
		if err != nil {
			continue // just removed
		}
		if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
			dir = filepath.Dir(dir)
		}
		if b, ok := backing(dir, roots); ok {
			found = append(found, b)
		}
	}
	return found, nil
}

// backing returns the file behind a loop device. dir is the device in sysfs.
func backing(dir string, roots []string) (b Backing, ok bool) {
	name, err := os.ReadFile(filepath.Join(dir, "loop", "backing_file"))
	if err != nil {
		return b, false
	}
	b.Device = "/dev/" + filepath.Base(dir)
	loop, err := os.Open(b.Device)
	if err != nil {
		return b, false
	}
	defer loop.Close()
	status, err := unix.IoctlLoopGetStatus64(int(loop.Fd()))
	if err != nil {
		return b, false
	}
	for _, root := range append([]string{"/"}, roots...) {
		b.Path = filepath.Join(root, strings.TrimSuffix(string(name), "\n"))
		var file unix.Stat_t
		if unix.Stat(b.Path, &file) != nil || file.Dev != status.Device || file.Ino != status.Inode {
			continue
		}
		b.Size, b.Allocated, b.filesystem = file.Size, file.Blocks*512, file.Dev
		var room unix.Statfs_t
		ok = unix.Statfs(b.Path, &room) == nil
		b.Available = int64(room.Bavail) * room.Bsize
		return b, ok
	}
	return b, false
}

// boundBy lowers Available and Metadata to what the filesystems of sparse files have left.
// A filesystem with space for all its files bounds nothing. Otherwise btrfs may write where
// a file has no space yet, although btrfs has space elsewhere.
func (r *Room) boundBy(files []Backing) {
	wanted, size := map[uint64]int64{}, map[uint64]int64{}
	for _, b := range files {
		wanted[b.filesystem] += b.Unallocated()
		size[b.filesystem] += b.Size
	}
	for _, b := range files {
		if wanted[b.filesystem] <= b.Available {
			continue
		}
		left := b.Available
		if raw := size[b.filesystem]; raw > r.Size { // btrfs writes several copies of data
			left = int64(float64(left) * float64(r.Size) / float64(raw))
		}
		if r.Backing == nil || left < r.Available {
			r.Backing = &b
		}
		r.Available = min(r.Available, left)
		r.Metadata = min(r.Metadata, left/2) // metadata usually has two copies
	}
}
