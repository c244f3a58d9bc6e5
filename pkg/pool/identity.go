package pool

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
)

// identity is the content of identityFile.
type identity struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
}

// valid reports whether the ID has the one spelling that this package writes. The ID is a label
// key in Kubernetes, and is compared as text.
func (id identity) valid() bool {
	parsed, err := uuid.Parse(id.ID)
	return err == nil && parsed.String() == id.ID && id.Version > 0
}

// readIdentity reads the ID of the pool in a directory; fs.ErrNotExist if it has none. A pool does
// not use the ID of its filesystem, which is copied with the disk and changed by tools.
func readIdentity(dir string) (id identity, err error) {
	path := filepath.Join(dir, identityFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return id, err
	}
	if err := json.Unmarshal(data, &id); err != nil || !id.valid() {
		return id, fmt.Errorf("%s is damaged (%q); restore it: volumes are found by its ID", path, data)
	}
	if id.Version > poolVersion {
		return id, fmt.Errorf("has layout version %d, this driver knows %d; run a newer one", id.Version, poolVersion)
	}
	return id, nil
}

// identify makes a pool of an empty directory that has no ID. A pool that contains volumes and
// lost its ID gets no new one, because PersistentVolumes contain the old one.
func (r *root) identify() (id string, err error) {
	for _, area := range Areas {
		names, err := os.ReadDir(r.area(area))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		if len(names) > 0 {
			return "", fmt.Errorf("%s is missing, but %s/ is not empty; restore the file: volumes are found by its ID", identityFile, area)
		}
	}
	if err := r.makeAreas(); err != nil {
		return "", err
	}
	id = uuid.NewString()
	data, err := json.Marshal(identity{Version: poolVersion, ID: id})
	if err != nil {
		return "", err
	}
	return id, writeDurably(filepath.Join(r.path, identityFile), append(data, '\n'))
}

// makeAreas makes the missing areas. Only root may enter them, because the files in a volume
// belong to the user of a pod. On a read-only filesystem (EROFS) the areas stay missing.
func (r *root) makeAreas() error {
	for _, area := range Areas {
		if err := os.Mkdir(r.area(area), 0o700); err != nil && !errors.Is(err, os.ErrExist) && !errors.Is(err, unix.EROFS) {
			return err
		}
	}
	return nil
}

// writeDurably writes a file that a power cut leaves whole, or as it was before.
func writeDurably(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // absent after the rename
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return btrfs.Sync(filepath.Dir(path) + "/.")
}
