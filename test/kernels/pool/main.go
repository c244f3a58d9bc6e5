// Command pool serves a pool that one kernel has made on another: it writes volumes, a snapshot
// and a clone, or reads what another run of it has written, and then takes it all away.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

func main() {
	if len(os.Args) != 4 || os.Args[1] != "write" && os.Args[1] != "read" {
		fmt.Fprintln(os.Stderr, "usage: pool write|read DRIVER DIRECTORY-WITH-A-MOUNTED-POOL")
		os.Exit(2)
	}
	if err := run(context.Background(), os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, what, binary, dir string) (err error) {
	node := testkit.NewNode(dir)
	if err := node.Make(); err != nil {
		return err
	}
	d, err := node.Start(ctx, node.Command(binary, "--quota=full"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.End(unix.SIGTERM)) }()
	if what == "write" {
		return write(ctx, d)
	}
	if err := read(ctx, d); err != nil {
		return err
	}
	check := exec.CommandContext(ctx, binary, "check", "--state-dir", node.State)
	if out, err := check.CombinedOutput(); err != nil {
		return fmt.Errorf("check: %w: %s", err, out)
	}
	return nil
}

const (
	mebi = 1 << 20
	size = 32 * mebi
)

// volumes are what the pool has, with parameters and the size. Of copy and of the snapshot, the
// content is that of data before it was written again.
var volumes = []struct {
	id         string
	parameters map[string]string
	size       int64
	content    byte
}{
	{"data", nil, 2 * size, 2},
	{"copy", nil, size, 1},
	{"compressed", map[string]string{"compression": "zstd"}, size, 3},
	{"in-place", map[string]string{"nodatacow": "true"}, size, 4},
}

const snapshot = "snap"

func write(ctx context.Context, d *testkit.Driver) error {
	for _, v := range volumes {
		if v.id == "copy" {
			continue
		}
		if err := create(ctx, d, v.id, v.parameters, nil); err != nil {
			return err
		}
		content := v.content
		if v.id == "data" {
			content = 1
		}
		if err := mounted(ctx, d, v.id, func(dir string) error { return fill(dir, content) }); err != nil {
			return err
		}
	}
	if _, err := d.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: snapshot, SourceVolumeId: "data"}); err != nil {
		return err
	}
	if err := create(ctx, d, "copy", nil, testkit.FromSnapshot(snapshot)); err != nil {
		return err
	}
	if err := mounted(ctx, d, "data", func(dir string) error { return fill(dir, 2) }); err != nil {
		return err
	}
	_, err := d.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: "data", CapacityRange: &csi.CapacityRange{RequiredBytes: 2 * size}})
	return err
}

func read(ctx context.Context, d *testkit.Driver) error {
	list, err := d.ListVolumes(ctx, &csi.ListVolumesRequest{})
	if err != nil {
		return err
	}
	var found, want []string
	for _, e := range list.GetEntries() {
		found = append(found, fmt.Sprintf("%s of %d", e.GetVolume().GetVolumeId(), e.GetVolume().GetCapacityBytes()))
	}
	for _, v := range volumes {
		want = append(want, fmt.Sprintf("%s of %d", v.id, v.size))
	}
	slices.Sort(found)
	slices.Sort(want)
	if !slices.Equal(found, want) {
		return fmt.Errorf("the volumes are %q, want %q", found, want)
	}
	for _, v := range volumes {
		err := mounted(ctx, d, v.id, func(dir string) error { return errors.Join(verify(dir, v.content), overfill(dir, v.size)) })
		if err != nil {
			return err
		}
	}
	if err := create(ctx, d, "restored", nil, testkit.FromSnapshot(snapshot)); err != nil {
		return err
	}
	if err := mounted(ctx, d, "restored", func(dir string) error { return verify(dir, 1) }); err != nil {
		return err
	}
	for _, id := range append([]string{"restored"}, "data", "copy", "compressed", "in-place") {
		if _, err := d.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
			return err
		}
	}
	_, err = d.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: snapshot})
	return err
}

func create(ctx context.Context, d *testkit.Driver, id string, parameters map[string]string, source *csi.VolumeContentSource) error {
	_, err := d.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: id, Parameters: parameters, VolumeContentSource: source, VolumeCapabilities: []*csi.VolumeCapability{testkit.Writer},
		CapacityRange: &csi.CapacityRange{RequiredBytes: size},
	})
	return err
}

func mounted(ctx context.Context, d *testkit.Driver, id string, do func(dir string) error) error {
	dir, err := d.Mount(ctx, id, testkit.Writer)
	if err == nil {
		err = do(dir)
	}
	if err = errors.Join(err, d.Unmount(ctx, id)); err != nil {
		return fmt.Errorf("volume %s: %w", id, err)
	}
	return nil
}

const amount = 8 * mebi

func fill(dir string, seed byte) error {
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{seed}), amount)
	return errors.Join(err, f.Sync(), f.Close())
}

func verify(dir string, seed byte) error {
	found, err := os.ReadFile(filepath.Join(dir, "file"))
	if err != nil {
		return err
	}
	var want strings.Builder
	if _, err := io.CopyN(&want, rand.NewChaCha8([32]byte{seed}), amount); err != nil {
		return err
	}
	if string(found) != want.String() {
		return fmt.Errorf("%s has other content than was written", dir)
	}
	return nil
}

// overfill writes more than fits, and takes it away.
func overfill(dir string, limit int64) error {
	file := filepath.Join(dir, "too-much")
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{9}), limit)
	if err == nil {
		err = f.Sync()
	}
	_ = f.Close()
	if err == nil {
		return fmt.Errorf("%s takes %d bytes beside its content, want EDQUOT", dir, limit)
	}
	if !errors.Is(err, unix.EDQUOT) {
		return err
	}
	return os.Remove(file)
}
