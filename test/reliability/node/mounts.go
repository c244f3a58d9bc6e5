package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/btrfs-csi/btrfs-csi/test/reliability/model"
)

// CheckMounts compares the mounts of the node with the expected ones, and fails for stray loop devices. A nil
// model expects no mounts of volumes.
func (n *Node) CheckMounts(m *model.Model) error {
	points, err := mountedBelow(n.Dir)
	if err != nil {
		return err
	}
	var errs []error
	if root := points[n.Pool()]; root != "/" {
		errs = append(errs, fmt.Errorf("%q is mounted as the pool, wanted is / once", root))
	}
	delete(points, n.Pool())
	if m != nil {
		errs = append(errs, n.takeWanted(points, m))
	}
	for at, root := range points {
		errs = append(errs, fmt.Errorf("stray mount of %s at %s", root, at))
	}
	return errors.Join(append(errs, n.checkLoops())...)
}

// takeWanted removes the expected mounts from points, and reports those that are missing or wrong.
func (n *Node) takeWanted(points map[string]string, m *model.Model) error {
	var errs []error
	m.Mu.Lock()
	defer m.Mu.Unlock()
	for _, o := range m.Living {
		for at, p := range map[string]model.Presence{n.StagingOf(o): o.Staged, n.TargetOf(o): o.Published} {
			root, there := points[at]
			delete(points, at)
			switch want := fmt.Sprintf("/%s/%s/fs", string(o.Kind), o.ID); {
			case there && (p == model.Absent || root != want):
				errs = append(errs, fmt.Errorf("%s: %s is mounted at %s, wanted is %s %v", o.ID, root, at, want, p))
			case !there && p == model.Present:
				errs = append(errs, fmt.Errorf("%s is not mounted at %s any more", o.ID, at))
			}
		}
	}
	return errors.Join(errs...)
}

// checkLoops fails unless the pool's image has one loop device, and no other file of the node has one.
func (n *Node) checkLoops() error {
	all, err := loops()
	if err != nil {
		return err
	}
	ours := slices.DeleteFunc(all, func(file string) bool {
		return file != n.Image && !strings.HasPrefix(file, n.Dir+"/")
	})
	if want := []string{n.Image}; !slices.Equal(ours, want) {
		return fmt.Errorf("loop devices on %q, wanted are those on %q", ours, want)
	}
	return nil
}

// mountedBelow returns the mounts below a directory: the root of each within its filesystem, by
// mount point. A mount point with two mounts has both roots.
func mountedBelow(dir string) (map[string]string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	points := map[string]string{}
	for _, m := range mounts {
		if other, twice := points[m.Mountpoint]; twice {
			m.Root = other + " and " + m.Root
		}
		points[m.Mountpoint] = m.Root
	}
	return points, err
}

// loops returns the backing file of each loop device of the machine.
func loops() ([]string, error) {
	devices, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var files []string
	for _, device := range devices {
		file, err := os.ReadFile(device)
		if err != nil {
			continue // the device was freed meanwhile
		}
		files = append(files, strings.TrimSpace(string(file)))
	}
	return files, nil
}
