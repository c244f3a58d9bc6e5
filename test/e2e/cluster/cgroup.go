package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	cgroupMount  = "/sys/fs/cgroup"
	cgroupPrefix = "btrfs-csi-e2e-"
)

// cgroup returns the cgroup of the pods and services of a node, the same in every hierarchy. Names of labs
// have no dot, so the cgroups of two labs cannot be confused.
func (s *state) cgroup(node string) string { return cgroupPrefix + s.name() + "." + node }

// makeCgroup makes a cgroup in every hierarchy, as the kubelet requires.
func makeCgroup(name string) error {
	if unified, err := isUnified(); err != nil {
		return err
	} else if unified {
		return makeUnified(name)
	}
	hierarchies, err := os.ReadDir(cgroupMount)
	if err != nil {
		return err
	}
	for _, hierarchy := range hierarchies {
		if !hierarchy.IsDir() { // a link, such as cpu to cpu,cpuacct
			continue
		}
		parent := filepath.Join(cgroupMount, hierarchy.Name())
		dir := filepath.Join(parent, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make a cgroup: %w", err)
		}
		// A cpuset without processors or memory accepts no process.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if err := inherit(parent, dir, file); err != nil {
				return err
			}
		}
	}
	return nil
}

// inherit copies a setting of the parent cgroup, if the parent has it.
func inherit(parent, dir, file string) error {
	value, err := os.ReadFile(filepath.Join(parent, file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, file), value, 0o644)
	}
	return err
}

func isUnified() (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupMount, &st); err != nil {
		return false, fmt.Errorf("cgroups, wanted at %s: %w", cgroupMount, err)
	}
	return st.Type == unix.CGROUP2_SUPER_MAGIC, nil
}

// makeUnified makes a cgroup of version 2, with those controllers of the kubelet that the machine has.
func makeUnified(name string) error {
	data, err := os.ReadFile(filepath.Join(cgroupMount, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, controller := range strings.Fields(string(data)) {
		if !slices.Contains([]string{"cpu", "cpuset", "memory", "pids", "hugetlb", "io"}, controller) {
			continue
		}
		if err := os.WriteFile(filepath.Join(cgroupMount, "cgroup.subtree_control"), []byte("+"+controller), 0o644); err != nil {
			return fmt.Errorf("cgroup controller %s: %w; run this where %s is the root of all cgroups, not in a container", controller, err, cgroupMount)
		}
	}
	if err := os.Mkdir(filepath.Join(cgroupMount, name), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make a cgroup: %w", err)
	}
	return nil
}

// joinCgroup moves this process and its future children into a cgroup of version 1. It does nothing with
// version 2, where a cgroup with children can have no processes.
func joinCgroup(name string) error {
	if unified, err := isUnified(); err != nil || unified {
		return err
	}
	for _, dir := range cgroupDirs(name) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return fmt.Errorf("join a cgroup: %w", err)
		}
	}
	return nil
}

// cgroupDirs returns the directories of cgroups whose name matches a pattern.
func cgroupDirs(pattern string) []string {
	one, _ := filepath.Glob(filepath.Join(cgroupMount, pattern))
	all, _ := filepath.Glob(filepath.Join(cgroupMount, "*", pattern))
	dirs := slices.DeleteFunc(append(one, all...), func(dir string) bool {
		hierarchy, err := os.Lstat(filepath.Dir(dir))
		return err != nil || !hierarchy.IsDir()
	})
	return dirs
}

// removeCgroups removes cgroups and all below them. Cgroups outlive their processes, and a kubelet that
// finds those of an earlier kubelet waits 45 seconds for them.
func removeCgroups(pattern string) (err error) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		err = nil
		for _, dir := range cgroupDirs(pattern) {
			err = errors.Join(err, removeCgroup(dir))
		}
		if err == nil {
			return nil
		}
	}
	return err
}

func removeCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			dirs = append(dirs, path)
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		return err
	})
	for _, dir := range slices.Backward(dirs) {
		if e := unix.Rmdir(dir); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("remove cgroup %s: %w", dir, e))
		}
	}
	return err
}

// removeStrayCgroups removes the cgroups of labs that no longer have a directory.
func removeStrayCgroups() error {
	var errs []error
	for _, dir := range cgroupDirs(cgroupPrefix + "*.*") {
		lab, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), cgroupPrefix), ".")
		if _, err := os.Stat(filepath.Join(root, lab)); errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, removeCgroup(dir))
		}
	}
	return errors.Join(errs...)
}
