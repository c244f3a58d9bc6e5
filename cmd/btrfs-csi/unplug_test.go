package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// plug mounts an image as a pool.
func plug(t *testing.T, image, pool string) {
	t.Helper()
	if err := os.MkdirAll(pool, 0o700); err != nil {
		t.Fatal(err)
	}
	tool(t, "mount", "-t", "btrfs", "-o", "loop", image, pool)
}

// unplug makes all later reads and writes of a mounted filesystem fail. losetup --detach
// would not do: the kernel keeps a loop device while it is in use.
func unplug(t *testing.T, image, pool string) {
	t.Helper()
	if err := os.Truncate(image, 0); err != nil {
		t.Fatal(err)
	}
	devices, err := btrfs.Devices(pool)
	if err != nil || len(devices) != 1 {
		t.Fatalf("devices of %s: %v, %v", pool, devices, err)
	}
	tool(t, "losetup", "--set-capacity", devices[0].Path)
}

// unpluggable is a driver with two pools, one of them on a device that is unplugged.
type unpluggable struct {
	*victim
	image, sick string // image and name of the unplugged pool
	http        string
	topology    *csi.Topology // of the node at its registration
}

func newUnpluggable(t *testing.T) *unpluggable {
	btrfstest.RequireRoot(t)
	dir := t.TempDir()
	u := &unpluggable{
		victim: &victim{Node: newNode(t, filepath.Join(dir, "state")), t: t, quota: "full", there: map[string]thing{}},
		image:  filepath.Join(dir, "sick.img"), http: freeAddress(t),
	}
	u.sick = filepath.Join(u.State, "pools/sick")
	for image, pool := range map[string]string{filepath.Join(dir, "well.img"): "default", u.image: "sick"} {
		tool(t, "truncate", "--size=512M", image)
		tool(t, "mkfs.btrfs", "-q", image)
		path := filepath.Join(u.State, "pools", pool)
		plug(t, image, path)
		t.Cleanup(func() { btrfstest.UnmountAll(t, path) })
	}
	t.Cleanup(func() {
		paths, _ := filepath.Glob(u.Kubelet + "/*")
		for _, path := range paths {
			btrfstest.UnmountAll(t, path)
		}
	})
	u.driver = startDriverOn(t, u.Node, "--http="+u.http)
	info, err := u.driver.NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
	u.must(err)
	u.topology = info.GetAccessibleTopology()
	return u
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// createIn creates a volume in a pool, publishes it and writes to it, durably.
func (u *unpluggable) createIn(pool, id string) {
	u.t.Helper()
	_, err := u.driver.CreateVolume(u.t.Context(), &csi.CreateVolumeRequest{
		Name: id, VolumeCapabilities: []*csi.VolumeCapability{testkit.Writer}, Parameters: map[string]string{"pool": pool},
		AccessibilityRequirements: &csi.TopologyRequirement{Requisite: []*csi.Topology{u.topology}},
		CapacityRange:             &csi.CapacityRange{RequiredBytes: 16 * mebi},
	})
	u.must(err)
	u.mount(id)
	u.must(u.writeTo(id, "known"))
}

func (u *unpluggable) writeTo(id, name string) error {
	f, err := os.Create(filepath.Join(u.Target(id), name))
	if err != nil {
		return err
	}
	_, err = f.WriteString("data of " + id)
	return errors.Join(err, f.Sync(), f.Close())
}

func (u *unpluggable) deleteFrom(id string) {
	u.t.Helper()
	u.unmount(id)
	_, err := u.driver.DeleteVolume(u.t.Context(), &csi.DeleteVolumeRequest{VolumeId: id})
	u.must(err)
}

// TestUnplugged removes the device of one pool while pods write to it. The other pool is
// served as before. Every report names the unplugged pool, and its volumes can be
// unpublished. With the device the volumes come back.
func TestUnplugged(t *testing.T) {
	u := newUnpluggable(t)
	u.createIn("sick", "pvc-sick")
	u.createIn("default", "pvc-well")
	u.must(u.take("snap-sick", "pvc-sick"))
	u.must(btrfs.Sync(u.sick))
	copied := u.image + ".copy"
	tool(t, "cp", "--sparse=always", u.image, copied)

	unplug(t, u.image, u.sick)
	if err := u.writeTo("pvc-sick", "late"); err == nil {
		t.Fatal("written and synced without a device")
	}
	u.served()
	u.reported()
	u.unmount("pvc-sick")
	u.served()

	u.must(btrfstest.Unmount(u.sick))
	u.served()
	tool(t, "cp", "--sparse=always", copied, u.image)
	plug(t, u.image, u.sick)
	u.back()
	for _, id := range []string{"pvc-sick", "pvc-well"} {
		u.deleteFrom(id)
	}
	u.driver.stop(t)
}

// served checks that all operations work in the other pool.
func (u *unpluggable) served() {
	u.t.Helper()
	ctx := u.t.Context()
	u.createIn("default", "pvc-new")
	u.must(u.ask("pvc-plain", nil, testkit.Writer))
	u.must(u.take("snap-new", "pvc-well"))
	sizes := u.listed()
	for _, id := range []string{"pvc-well", "pvc-new", "pvc-plain", "snap-new"} {
		if sizes[id] == 0 {
			u.t.Errorf("%s is not listed: %v", id, sizes)
		}
	}
	data, err := os.ReadFile(filepath.Join(u.Target("pvc-well"), "known"))
	if string(data) != "data of pvc-well" {
		u.t.Errorf("the volume of the good pool contains %q, %v", data, err)
	}
	u.deleteFrom("pvc-new")
	_, err = u.driver.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: "pvc-plain"})
	u.must(err)
	_, err = u.driver.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: "snap-new"})
	u.must(err)
}

// reported checks that every report names the unplugged pool, and no other.
func (u *unpluggable) reported() {
	u.t.Helper()
	health, err := u.driver.NodeGetStorageHealth(u.t.Context(), &csi.NodeGetStorageHealthRequest{})
	u.must(err)
	if text := health.String(); !strings.Contains(text, `pool \"sick\"`) || strings.Contains(text, `pool \"default\"`) {
		u.t.Errorf("health is %s", text)
	}
	volume, err := u.driver.ControllerGetVolumeHealth(u.t.Context(), &csi.ControllerGetVolumeHealthRequest{VolumeId: "pvc-sick"})
	u.must(err)
	if len(volume.GetVolumeHealth().GetHealthStatuses()) == 0 {
		u.t.Error("the volume is healthy")
	}
	stdout, _, _ := run(u.t, "pools", "-o", "json", "--state-dir", u.State)
	var rows []poolRow
	u.must(json.Unmarshal([]byte(stdout), &rows))
	if len(rows) != 2 || rows[0].Status != "Ready" || rows[1].Name != "sick" || rows[1].Status == "Ready" {
		u.t.Errorf("pools: %s", stdout)
	}
	metrics := u.scrape()
	for pool, want := range map[string]bool{"default": false, "sick": true} {
		if u.hasErrors(metrics, pool) != want {
			u.t.Errorf("metrics have errors in pool %s: %v\n%s", pool, !want, metrics)
		}
	}
}

// hasErrors reports whether the metrics show device errors of a pool, or that it is
// unusable or read-only.
func (u *unpluggable) hasErrors(metrics, pool string) bool {
	for line := range strings.Lines(metrics) {
		name, labels, _ := strings.Cut(line, "{")
		if !strings.Contains(labels, fmt.Sprintf("pool=%q", pool)) {
			continue
		}
		zero := strings.HasSuffix(line, " 0\n")
		switch name {
		case "btrfs_csi_pool_device_errors_total", "btrfs_csi_pool_read_only":
			if !zero {
				return true
			}
		case "btrfs_csi_pool_usable":
			if zero {
				return true
			}
		}
	}
	return false
}

func (u *unpluggable) scrape() string {
	u.t.Helper()
	response, err := http.Get("http://" + u.http + "/metrics")
	u.must(err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	u.must(err)
	return string(text)
}

// back waits until the volume is served again with its data.
func (u *unpluggable) back() {
	u.t.Helper()
	var err error
	btrfstest.Comes(func() bool {
		err = u.driver.Stage(u.t.Context(), "pvc-sick", testkit.Writer)
		return err == nil
	})
	u.must(err)
	u.must(u.driver.Publish(u.t.Context(), "pvc-sick", testkit.Writer))
	data, err := os.ReadFile(filepath.Join(u.Target("pvc-sick"), "known"))
	if string(data) != "data of pvc-sick" {
		u.t.Errorf("the volume is back with %q, %v", data, err)
	}
	if sizes := u.listed(); sizes["pvc-sick"] == 0 || sizes["snap-sick"] == 0 {
		u.t.Errorf("not listed again: %v", sizes)
	}
	u.must(u.writeTo("pvc-sick", "late"))
	if u.hasErrors(u.scrape(), "sick") {
		u.t.Error("the metrics have errors still")
	}
}
