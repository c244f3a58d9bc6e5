package components

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// cache is the directory of the cache; see doc.go.
type cache struct {
	dir string
	log io.Writer
}

const (
	// unfinished is the prefix of the names of entries that are being made.
	unfinished = ".unfinished-"
	// unusedFor is the time after which prune removes an unused entry.
	unusedFor = 30 * 24 * time.Hour
)

func openCache(log io.Writer) (cache, error) {
	user, err := os.UserCacheDir()
	if err != nil {
		return cache{}, fmt.Errorf("no place for what is built: %w", err)
	}
	c := cache{filepath.Join(user, "btrfs-csi", "e2e"), log}
	return c, os.MkdirAll(c.dir, 0o755)
}

// entry returns the directory of the entry with a name and a key. If it does not exist, fill fills a new one.
func (c cache) entry(ctx context.Context, name string, key hash.Hash, fill func(dir string) error) (string, error) {
	dir := filepath.Join(c.dir, fmt.Sprintf("%s-%.12x", name, key.Sum(nil)))
	if used(dir) {
		return dir, nil
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	if used(dir) { // another process has made it meanwhile
		return dir, nil
	}
	if err := c.prune(); err != nil {
		return "", err
	}
	made, err := os.MkdirTemp(c.dir, unfinished)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(made) //nolint:errcheck // it is renamed if all went well; otherwise prune removes it
	if err := errors.Join(fill(made), os.Chmod(made, 0o755)); err != nil {
		return "", err
	}
	return dir, os.Rename(made, dir)
}

// used reports whether an entry exists, and sets its time, by which prune decides.
func used(dir string) bool {
	now := time.Now()
	return os.Chtimes(dir, now, now) == nil
}

// lock waits until no other process builds. The kernel unlocks when this process ends.
func (c cache) lock(ctx context.Context) (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Join(c.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for logged := false; ; logged = true {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", file.Name(), err)
		}
		if !logged {
			fmt.Fprintln(c.log, "waiting for another who builds into", c.dir)
		}
		select {
		case <-ctx.Done():
			file.Close()
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// prune removes the entries of killed builds, and those that were not used for long. The caller has locked the
// cache, so no unfinished entry is in use.
func (c cache) prune() error {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if strings.HasPrefix(entry.Name(), unfinished) || time.Since(info.ModTime()) > unusedFor {
			if err := os.RemoveAll(filepath.Join(c.dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
