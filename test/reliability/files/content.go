package files

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Content is the content of a volume: the names and digests of its files, in order, as one string.
type Content string

// unfinishedFile is the name of a file while it is written. Any copy may contain it, with any data.
const unfinishedFile = ".new"

// fileNames is the number of different file names, so that most writes replace a file.
const fileNames = 6

// Of reads the content of a directory.
func Of(dir string) (Content, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	digests := map[string]string{}
	for _, f := range files {
		if f.Name() == unfinishedFile {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return "", err
		}
		digests[f.Name()] = digest(data)
	}
	return contentWith(digests), nil
}

func contentWith(digests map[string]string) Content {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(digests)) {
		parts = append(parts, name+":"+digests[name])
	}
	return Content(strings.Join(parts, " "))
}

// String is for people.
func (c Content) String() string { return "[" + string(c) + "]" }

func (c Content) digests() map[string]string {
	digests := map[string]string{}
	for _, part := range strings.Fields(string(c)) {
		name, digest, _ := strings.Cut(part, ":")
		digests[name] = digest
	}
	return digests
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return fmt.Sprintf("%d/%s", len(data), hex.EncodeToString(sum[:6]))
}

// Change is one change by a pod: a file is created, replaced or removed.
type Change struct {
	Name string
	Data []byte // nil: removed
}

// RandomChange returns a random change. Most files are inline or have a few extents, some are large.
func RandomChange(r *rand.Rand, now Content) Change {
	c := Change{Name: fmt.Sprintf("f%d", r.IntN(fileNames))}
	if _, there := now.digests()[c.Name]; there && r.IntN(8) == 0 {
		return c
	}
	size := 1 + r.IntN(8<<10)
	if r.IntN(16) == 0 {
		size = 1 + r.IntN(192<<10)
	}
	c.Data = make([]byte, size)
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], r.Uint64())
	_, _ = rand.NewChaCha8(seed).Read(c.Data)
	return c
}

// After returns the content after the change.
func (c Change) After(before Content) Content {
	digests := before.digests()
	if c.Data == nil {
		delete(digests, c.Name)
	} else {
		digests[c.Name] = digest(c.Data)
	}
	return contentWith(digests)
}

// Make makes the change atomically and durably: at any instant either the old or the new file exists, and when
// make returns the new one is durable.
func (c Change) Make(dir string) error {
	for _, step := range c.Steps(dir) {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// Steps are those of make.
func (c Change) Steps(dir string) []func() error {
	name, next := filepath.Join(dir, c.Name), filepath.Join(dir, unfinishedFile)
	sync := func() error { return SyncDir(dir) }
	if c.Data == nil {
		return []func() error{func() error { return os.Remove(name) }, sync}
	}
	return []func() error{
		func() error { return WriteSynced(next, c.Data) },
		func() error { return os.Rename(next, name) },
		sync,
	}
}

// WriteSynced writes a file and syncs its data.
func WriteSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// SyncDir syncs a directory.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// RefusesWrites fails unless a write to dir fails.
func RefusesWrites(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, "intruder"), os.O_CREATE|os.O_WRONLY, 0o600)
	if errors.Is(err, unix.EROFS) {
		return nil
	}
	if err == nil {
		return errors.Join(fmt.Errorf("%s is read-only and can be written", dir), f.Close())
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}
