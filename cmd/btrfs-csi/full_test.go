package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
)

// fillBlocks uses all blocks, and fillInodes all inodes.
func fillBlocks(dir string) error { return btrfstest.FillFile(filepath.Join(dir, "ballast")) }

func fillInodes(dir string) error {
	for i := 0; ; i++ {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("ballast-%d", i)))
		if errors.Is(err, unix.ENOSPC) {
			return nil
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
}

// TestFullStateDirectory: the driver starts, lists and deletes on a full state directory.
// Without free blocks the socket is there, too. Without free inodes no socket could be made
// there.
func TestFullStateDirectory(t *testing.T) {
	for _, test := range []struct {
		name    string
		fill    func(dir string) error
		noInode bool
	}{{"blocks", fillBlocks, false}, {"inodes", fillInodes, true}} {
		t.Run(test.name, func(t *testing.T) {
			state := stateOnExt4(t)
			start := func() *running {
				n := newNode(t, state)
				if !test.noInode {
					n.Socket = filepath.Join(state, "csi.sock")
				}
				return startDriverOn(t, n)
			}
			d := start()
			for i := range 3 {
				d.createVolume(t, fmt.Sprintf("pvc-%d", i))
			}
			d.stop(t)
			if err := test.fill(state); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(state, "directory"), 0o700); !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("there is room: %v", err)
			}
			for i := range 3 { // also after restarts
				d = start()
				d.wantVolumes(t, 3-i)
				if _, err := d.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: fmt.Sprintf("pvc-%d", i)}); err != nil {
					t.Error(err)
				}
				d.wantVolumes(t, 2-i)
				if logged := strings.Contains(d.LogText(), "No room for the socket"); logged != test.noInode {
					t.Errorf("logged that there is no room for admin.sock: %v\n%s", logged, d.LogText())
				}
				d.stop(t)
			}
		})
	}
}

// stateOnExt4 returns a state directory on a small ext4, with a pool.
func stateOnExt4(t *testing.T) string {
	t.Helper()
	pool := btrfstest.Mount(t)
	state, device := t.TempDir(), btrfstest.Loop(t, 4*mebi)
	tool(t, "mkfs.ext4", "-q", "-m", "0", "-N", "64", "-O", "^has_journal", device)
	tool(t, "mount", "-t", "ext4", device, state)
	t.Cleanup(func() { tool(t, "umount", "--recursive", state) })
	if err := os.MkdirAll(filepath.Join(state, "pools", "default"), 0o700); err != nil {
		t.Fatal(err)
	}
	tool(t, "mount", "--bind", pool, filepath.Join(state, "pools", "default"))
	return state
}

func (r *running) wantVolumes(t *testing.T, want int) {
	t.Helper()
	list, err := r.ListVolumes(t.Context(), &csi.ListVolumesRequest{})
	if err != nil || len(list.GetEntries()) != want {
		t.Errorf("%d volumes are listed (%v), want %d", len(list.GetEntries()), err, want)
	}
}
