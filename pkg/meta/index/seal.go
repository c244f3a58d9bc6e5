package index

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// seal records whether the index file can be trusted. bbolt maps the file and trusts its
// pages. A damaged page makes it panic, partly in goroutines that cannot be recovered. So
// the file is judged before it is opened:
//
//   - Boot: the index is open, or its process was killed. The file is valid until the next
//     boot, because the page cache has all writes. This seal is synced before the index is
//     used. Otherwise a power cut could restore an earlier index with its checksum, and the
//     memory of absent pools since then would be lost.
//   - Sum: the index was closed. Neither the file nor this seal is synced. If a power cut
//     prevents their write, the seal does not match.
//   - Subvolume: a btrfs snapshot contains an older index with its seal. When the snapshot
//     replaces its source the index is older than the pools, and would report newer volumes
//     of absent pools as gone. So the seal names the subvolume in which it was written.
type seal struct {
	Boot      string `json:"boot,omitempty"`      // ID of the boot in which the index was opened
	Sum       string `json:"sha256,omitempty"`    // SHA-256 of the closed file
	Subvolume string `json:"subvolume,omitempty"` // ID of the subvolume around the file, on btrfs
}

func sealPath(path string) string { return path + ".seal" }

// checkSeal returns an error unless the index file is unchanged since its last use.
func checkSeal(path string) error {
	data, err := os.ReadFile(sealPath(path))
	if err != nil {
		return fmt.Errorf("no seal: %w", err)
	}
	var s seal
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("seal is damaged: %w", err)
	}
	subvolume, err := subvolumeOf(path)
	if err != nil {
		return err
	}
	if s.Subvolume != subvolume {
		return errors.New("was restored, or is in a snapshot that has taken the place of where it was written")
	}
	if s.Boot != "" {
		boot, err := bootID()
		if err == nil && s.Boot != boot {
			err = errors.New("was not closed before the last boot")
		}
		return err
	}
	sum, err := sumOf(path)
	if err == nil && s.Sum != sum {
		err = errors.New("is not what was closed")
	}
	return err
}

// sealOpen seals the file as in use, durably. sealClosed seals its current content.
func sealOpen(path string) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	if err := (seal{Boot: boot}).write(path); err != nil {
		return err
	}
	return syncFiles(sealPath(path), filepath.Dir(path))
}

// syncFiles syncs files and directories in order.
func syncFiles(paths ...string) error {
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func sealClosed(path string) error {
	sum, err := sumOf(path)
	if err != nil {
		return err
	}
	return seal{Sum: sum}.write(path)
}

// write replaces the seal atomically. After a kill it is the old one or the new one.
func (s seal) write(path string) (err error) {
	if s.Subvolume, err = subvolumeOf(path); err != nil {
		return err
	}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	next := sealPath(path) + ".new"
	if err := os.WriteFile(next, data, 0o600); err != nil {
		return err
	}
	return os.Rename(next, sealPath(path))
}

// subvolumeOf returns an ID of the subvolume around a file, or "" outside of btrfs. In
// btrfs statfs(2) combines the IDs of the filesystem and the subvolume.
func subvolumeOf(path string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return "", fmt.Errorf("statfs %s: %w", path, err)
	}
	if uint32(st.Type) != unix.BTRFS_SUPER_MAGIC {
		return "", nil
	}
	return fmt.Sprintf("%08x%08x", uint32(st.Fsid.Val[0]), uint32(st.Fsid.Val[1])), nil
}

func sumOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data)), err
}
