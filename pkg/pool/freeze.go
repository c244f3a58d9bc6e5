package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/diskfile"
	"github.com/btrfs-csi/btrfs-csi/pkg/loop"
	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
)

// FIFREEZE and FITHAW of linux/fs.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// longestFreeze is how long a filesystem in a disk file stays frozen at most. Pods that write to it
// wait meanwhile.
const longestFreeze = 20 * time.Second

// freezes are the filesystems in disk files that this process has frozen.
type freezes struct {
	longest time.Duration // 0: longestFreeze

	mu sync.Mutex       // protects of
	of map[Slot]*freeze // nil: none
}

// freeze is one frozen filesystem. It is thawed when the watchdog rings.
type freeze struct {
	root     *os.File // a directory of the filesystem
	watchdog *time.Timer
}

// Freeze writes what is in memory first, so that the filesystem is frozen for a short time only.
func (r *root) Freeze(s Slot) (frozen bool, err error) {
	dir, err := r.mounted(s)
	if dir == nil || err != nil {
		return false, err
	}
	_ = unix.Syncfs(int(dir.Fd()))
	err = unix.IoctlSetInt(int(dir.Fd()), fiFreeze, 0)
	if err != nil {
		dir.Close()
		if errors.Is(err, unix.EBUSY) { // somebody else has frozen it
			return false, nil
		}
		return false, fmt.Errorf("freeze the filesystem in %s: %w", s, err)
	}
	r.disk.freezes.begin(s, dir)
	return true, nil
}

func (f *freezes) begin(s Slot, dir *os.File) {
	f.mu.Lock()
	defer f.mu.Unlock()
	longest := longestFreeze
	if f.longest > 0 {
		longest = f.longest
	}
	if f.of == nil {
		f.of = map[Slot]*freeze{}
	}
	f.of[s] = &freeze{dir, time.AfterFunc(longest, func() {
		err := unfreeze(dir)
		dir.Close()
		klog.Background().Error(err, "A filesystem was frozen for too long for a snapshot, and is thawed", "path", dir.Name(), "after", longest)
	})}
}

// end returns what the watchdog has not thawed; nil for none.
func (f *freezes) end(s Slot) (dir *os.File, known bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	of := f.of[s]
	delete(f.of, s)
	switch {
	case of == nil:
		return nil, false
	case of.watchdog.Stop():
		return of.root, true
	}
	return nil, true
}

// Thaw thaws what Freeze of this process has frozen, or else what an earlier process has.
func (r *root) Thaw(s Slot) error {
	dir, known := r.disk.freezes.end(s)
	if known && dir == nil {
		return ErrThawed
	}
	if !known {
		var err error
		if dir, err = r.mounted(s); err != nil {
			return err
		}
		if dir == nil {
			return ErrThawed
		}
	}
	defer dir.Close()
	if err := unfreeze(dir); err != nil {
		return fmt.Errorf("thaw the filesystem in %s: %w", s, err)
	}
	return nil
}

func unfreeze(dir *os.File) error {
	err := unix.IoctlSetInt(int(dir.Fd()), fiThaw, 0)
	if errors.Is(err, unix.EINVAL) {
		return ErrThawed
	}
	return err
}

// mounted opens the root directory of the filesystem in a disk file, wherever it is mounted; nil
// if it is not mounted.
func (r *root) mounted(s Slot) (*os.File, error) {
	f, err := diskfile.Open(r.subvolume(s), false)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	device, err := loop.Find(f)
	if device == nil || err != nil {
		return nil, err
	}
	defer device.Close()
	on, err := mount.On(device.Number())
	if err != nil {
		return nil, err
	}
	for _, m := range on {
		dir, err := rootOf(m.Point, device.Number())
		if err == nil {
			return dir, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errCovered) {
			return nil, err
		}
	}
	if len(on) > 0 {
		return nil, fmt.Errorf("the filesystem in %s is mounted at %s, which cannot be reached", s, on[0].Point)
	}
	return nil, nil
}

// errCovered means that another mount covers a mount point.
var errCovered = errors.New("something else is mounted above it")

func rootOf(point string, device uint64) (*os.File, error) {
	dir, err := os.OpenFile(point, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(dir.Fd()), &st); err == nil && st.Dev != device {
		err = errCovered
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}
