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

// seal says when the index file can be trusted. bbolt maps the file and believes
// its pages: damage makes it panic, partly in goroutines of its own where nobody
// can recover, so a file has to be judged before it is opened.
//
// As long as the index is open, and after its process was killed, the file is as
// good as the kernel's page cache, that is, until the next boot. Once it was
// closed it is as good as its checksum. The index is never synced, nor is that checksum:
// a power cut in between leaves a seal that does not match. But that the index is in use
// is durable before it is: else a power cut could leave the index and the checksum as they
// were closed earlier, and what was remembered since of pools that are away would be
// lost.
//
// A snapshot of btrfs holds both files as they were. When it takes the place of its source
// the index is older than the pools, and would say of what a pool that is away has got
// since that it never was. So the seal also names the subvolume.
type seal struct {
	Boot      string `json:"boot,omitempty"`      // open since this boot
	Sum       string `json:"sha256,omitempty"`    // closed with this content
	Subvolume string `json:"subvolume,omitempty"` // that it was written in, on btrfs
}

func sealPath(path string) string { return path + ".seal" }

// checkSeal fails for an index file that is not as its last user left it.
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

// sealOpen marks the file as in use, sealClosed as it is now.
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

// syncFiles makes files and directories durable, in order.
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

// write replaces the seal. A killed process leaves the old one or the new one.
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

// subvolumeOf identifies the subvolume that a file lies in, "" where it is not on btrfs:
// statfs mixes the subvolume's ID into that of the filesystem.
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
