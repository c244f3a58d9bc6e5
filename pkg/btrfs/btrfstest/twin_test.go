package btrfstest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestPowerCutIsAnotherFilesystem: kernels before CopyBeside tell filesystems apart by the ID on
// the disk, also a copy of a copy.
func TestPowerCutIsAnotherFilesystem(t *testing.T) {
	seen := map[string]bool{}
	for mnt, i := Mount(t), 0; i < 3; mnt, i = PowerCut(t, mnt), i+1 {
		super := superOf(t, Image(t, mnt))
		seen[string(super[superFSID:superFSID+uuidSize])] = true
		if err := os.Mkdir(filepath.Join(mnt, string(rune('a'+i))), 0o700); err != nil {
			t.Fatal(err)
		}
		if names, err := os.ReadDir(mnt); err != nil || len(names) != i+1 {
			t.Errorf("copy %d has %v, %v", i, names, err)
		}
		if err := Sync(mnt); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != 3 {
		t.Errorf("an original, its copy, and the copy of that have %d IDs", len(seen))
	}
}

func superOf(t *testing.T, image string) []byte {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	super := make([]byte, superSize)
	if _, err := f.ReadAt(super, superAt); err != nil {
		t.Fatal(err)
	}
	return super
}

// TestRenameChangesTheSuperblockAlone: the logs of an fsync, which the next mount replays, stay.
func TestRenameChangesTheSuperblockAlone(t *testing.T) {
	mnt := Mount(t, Size(128<<20))
	image := copyImage(t, mnt)
	before, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := Rename(image); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(before[superAt:superAt+superSize], after[superAt:superAt+superSize]) {
		t.Error("the superblock has not changed")
	}
	copy(after[superAt:], before[superAt:superAt+superSize])
	if !bytes.Equal(before, after) {
		t.Error("more than the superblock has changed")
	}
	clear(after)
	if err := os.WriteFile(image, after, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Rename(image); err == nil {
		t.Error("no error where there is no btrfs")
	}
}
