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

// cache is the directory of what was built. See doc.go.
type cache struct {
	dir string
	log io.Writer
}

const (
	// unfinished begins the names of entries that are being made.
	unfinished = ".unfinished-"
	// unusedFor is how long an entry stays that nobody asks for.
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

// entry returns the directory of what has a name and a key, made if it is not there
// by a function that fills a new directory.
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
	if used(dir) { // made while we waited
		return dir, nil
	}
	if err := c.prune(); err != nil {
		return "", err
	}
	made, err := os.MkdirTemp(c.dir, unfinished)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(made) //nolint:errcheck // gone already, if all went well; else prune removes it
	if err := errors.Join(fill(made), os.Chmod(made, 0o755)); err != nil {
		return "", err
	}
	return dir, os.Rename(made, dir)
}

// used reports whether an entry is there, and notes that it is of use: its time is
// what prune goes by.
func used(dir string) bool {
	now := time.Now()
	return os.Chtimes(dir, now, now) == nil
}

// lock waits until nobody else builds. The kernel gives it back if we die.
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

// prune removes what a killed build left, and what was not used for long. The
// caller holds the lock, so nothing unfinished is anybody's.
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
