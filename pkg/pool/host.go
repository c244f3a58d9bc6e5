package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
)

const (
	// poolsDir, in the state directory, contains the pools.
	poolsDir = "pools"
	// knownDir, in the state directory, contains a file for each pool that was ever in use. The
	// name of the file is the pool's ID, its content the pool's name.
	knownDir = "known"
	// identityFile, in the pool's directory, contains the ID of the pool.
	identityFile = "pool.json"
	// poolVersion is the version of the layout. It is raised when an older driver must not use
	// the pool.
	poolVersion = 1
	// pollPools is how long a change may stay unnoticed if the mount table does not show it, such
	// as a detached mount below a mount or an exchanged directory.
	pollPools = 10 * time.Second
)

// Default is the pool of a request that names none. If no pool has this name, such a request gets
// the only pool of the node.
const Default = "default"

// QuotaAuto keeps the quota mode of a filesystem. Where quota is off, it turns on the mode that
// the driver last saw there, else full quota.
const QuotaAuto btrfs.QuotaMode = "auto"

// poolName matches names that a StorageClass parameter and a directory can have.
var poolName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)

// ValidName reports whether name can be the name of a pool: up to 63 lower-case letters, digits,
// dots and dashes, with a letter or digit at both ends.
func ValidName(name string) bool { return poolName.MatchString(name) }

// node is the real Host. Every btrfs mounted at <state dir>/pools/<name> is a pool. The directory
// <state dir>/pools/default is a pool without a mount too, if the state directory is on btrfs. No
// other directory is: the mount point of a disk that failed to mount would become a pool on the
// wrong filesystem.
type node struct {
	state   string // the state directory, which also contains the file of a loop pool
	pools   string
	quota   btrfs.QuotaMode
	passive bool // changes nothing: makes no pool, turns on no quota

	// mounts reports changes of the mount table since before the first look at the pools, so that
	// Wait misses none. nil: the watch failed, and Wait polls.
	mounts *mount.Watch
	poll   time.Duration // pollPools, except in tests
	modes  sync.Map      // quota modes under QuotaAuto, by pool ID
}

// NewHost returns the pools of this machine below stateDir. If stateDir is on btrfs, NewHost
// makes the pool Default. quota is QuotaAuto or the mode to turn on.
func NewHost(stateDir string, quota btrfs.QuotaMode) (Host, error) {
	n := &node{state: stateDir, pools: filepath.Join(stateDir, poolsDir), quota: quota, poll: pollPools}
	if err := os.MkdirAll(n.pools, 0o700); err != nil {
		return nil, err
	}
	n.mounts, _ = mount.NewWatch()
	if err := n.makeDefault(); err != nil {
		return nil, err
	}
	return n, nil
}

// PassiveHost returns the pools of this machine as they are. It makes no pool and turns on no
// quota.
func PassiveHost(stateDir string) Host {
	return &node{state: stateDir, pools: filepath.Join(stateDir, poolsDir), quota: QuotaAuto, passive: true, poll: pollPools}
}

func (n *node) known() string { return filepath.Join(n.state, knownDir) }

func (n *node) Remember(poolID, name string) error {
	known, err := n.Known()
	if err != nil {
		return err
	}
	if known[poolID] != name {
		if err := os.Mkdir(n.known(), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if err := writeDurably(filepath.Join(n.known(), poolID), []byte(name+"\n")); err != nil {
			return err
		}
	}
	// An existing file is synced too: its writer may have been killed before the fsync.
	return errors.Join(btrfs.Sync(n.known()+"/."), btrfs.Sync(filepath.Dir(n.known())+"/."))
}

func (n *node) Forget(poolID string) error {
	if _, err := uuid.Parse(poolID); err != nil {
		return fmt.Errorf("pool ID %q: %w", poolID, err) // it becomes part of a path
	}
	if err := os.Remove(filepath.Join(n.known(), poolID)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (n *node) Known() (map[string]string, error) {
	files, err := os.ReadDir(n.known())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	names := map[string]string{}
	for _, file := range files {
		if _, err := uuid.Parse(file.Name()); err != nil {
			continue // a temporary file that a crash left
		}
		data, failed := os.ReadFile(filepath.Join(n.known(), file.Name()))
		if failed != nil && !errors.Is(failed, os.ErrNotExist) {
			err = errors.Join(err, failed)
		}
		names[file.Name()] = strings.TrimSpace(string(data))
	}
	return names, err
}

func (n *node) makeDefault() error {
	if ok, err := btrfs.IsBtrfs(n.pools); err != nil || !ok {
		return err
	}
	path := filepath.Join(n.pools, Default)
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	// A subvolume stays whole when the filesystem around it is rolled back. In a plain directory,
	// the records would be rolled back and the volumes would not.
	err := btrfs.Create(path)
	if errors.Is(err, unix.EROFS) {
		return nil
	}
	if err == nil {
		err = errors.Join(os.Chmod(path, 0o700), btrfs.Sync(n.pools))
	}
	return err
}

func (n *node) Pools() (names []string, refused map[string]error, err error) {
	dirs, err := os.ReadDir(n.pools)
	if err != nil {
		return nil, nil, err
	}
	refused = map[string]error{}
	for _, dir := range dirs {
		name := dir.Name()
		if _, err := n.acceptable(name, dir.IsDir()); err != nil {
			refused[name] = err
			continue
		}
		names = append(names, name)
	}
	return names, refused, nil
}

// acceptable returns why an entry of the pools directory is no pool, nil if it is one, and
// whether a filesystem is mounted there.
func (n *node) acceptable(name string, dir bool) (mounted bool, err error) {
	path := filepath.Join(n.pools, name)
	switch {
	case !ValidName(name):
		return false, fmt.Errorf("pool %q: a name of up to 63 lower-case letters, digits, dots and dashes is wanted; rename %s", name, path)
	case !dir:
		return false, fmt.Errorf("pool %q: %s is no directory; mount a btrfs filesystem on a directory there", name, path)
	}
	if mounted, err = mount.IsPoint(path); err != nil {
		return false, fmt.Errorf("pool %q: %w", name, err)
	}
	if name != Default && !mounted {
		return false, fmt.Errorf("pool %q: nothing is mounted at %s; mount a btrfs filesystem there, or remove the directory", name, path)
	}
	ok, err := btrfs.IsBtrfs(path)
	if err != nil {
		return mounted, fmt.Errorf("pool %q: %w", name, err)
	}
	if !ok {
		return mounted, fmt.Errorf("pool %q: not on btrfs; mount a btrfs filesystem at %s", name, path)
	}
	if mounted {
		return true, nil
	}
	if stub, err := btrfs.IsStub(path); stub || err != nil {
		return false, errors.Join(err, fmt.Errorf("pool %q: %w: move it back: mount the filesystem with subvolid=5, find the pool with btrfs subvolume list, and run there: mv -T OLD/%s/%s NEW/%s/%s",
			name, ErrRolledBack, poolsDir, name, poolsDir, name))
	}
	return false, n.displaced(name, path)
}

// displaced fails if nothing is mounted at a directory where a pool was mounted before, for
// example because its disk was missing at boot. Without this check, a new pool on the filesystem
// below would take its place.
func (n *node) displaced(name, path string) error {
	if _, err := os.Lstat(filepath.Join(path, identityFile)); !errors.Is(err, os.ErrNotExist) {
		return nil // it is a pool already
	}
	known, err := n.Known()
	for id, was := range known {
		if was == name {
			return fmt.Errorf("pool %q: nothing is mounted at %s, where pool %s was: mount its filesystem there, or, if its disk is gone for good, remove the file known/%s in the state directory", name, path, id, id)
		}
	}
	return err
}

// Wait waits for a change of the mount table, for at most n.poll.
func (n *node) Wait(ctx context.Context) {
	if n.mounts == nil {
		select {
		case <-ctx.Done():
		case <-time.After(n.poll):
		}
		return
	}
	for waited := time.Duration(0); waited < n.poll && ctx.Err() == nil; waited += pollSlice {
		if changed, err := n.mounts.Changed(pollSlice); changed && err == nil {
			return
		}
	}
}

// pollSlice is how long Wait may overlook the end of ctx.
const pollSlice = 250 * time.Millisecond
