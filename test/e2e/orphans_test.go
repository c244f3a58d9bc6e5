//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
)

// Orphans are reported and kept, and deleted only if the policy says so. A volume that is in use or
// referenced is never deleted.
func TestOrphans(t *testing.T) {
	home := lab.Nodes[0]
	s := newSpace(t)
	for _, claim := range []string{"forgotten", "used", "known", "lost"} {
		s.claim(claim, selected(home))
	}
	s.pod("used")
	s.running("used")
	for _, snapshot := range []string{"forgotten", "known"} {
		s.snapshot(snapshot, "known")
	}
	handles := map[string]string{}
	for _, claim := range []string{"forgotten", "used", "known", "lost"} {
		handles[claim] = s.volume(claim).Spec.CSI.VolumeHandle
	}
	for _, snapshot := range []string{"forgotten", "known"} {
		handles["snapshot "+snapshot] = *s.content(snapshot).Status.SnapshotHandle
	}
	lost := s.volume("lost").Name
	// A volume that this cluster never had is not marked for deletion.
	for _, handle := range handles {
		await(t, lab.subvolumes, handle, "have its object", func(v *v1alpha1.Subvolume) bool {
			return v.Annotations[driverName+"/object"] != ""
		})
	}

	s.forget("forgotten")
	s.forget("used")
	s.forgetSnapshot("forgotten")
	for _, handle := range handles {
		age(t, home, handle)
	}
	item := find(t, home, handles["lost"])
	onNode(t, home, "btrfs subvolume delete "+filepath.Join(poolsDir, item.Pool, item.Path, "fs"))
	killDriver(t, home)
	driverReady(t, home)

	orphans := map[string]string{
		"forgotten": handles["forgotten"], "used": handles["used"], "snapshot": handles["snapshot forgotten"],
	}
	t.Run("Reported", func(t *testing.T) {
		for _, handle := range orphans {
			awaitEvent(t, metav1.NamespaceDefault, "Subvolume", handle, "Orphaned", handle, home.Name, "kept until somebody deletes it")
		}
		awaitEvent(t, metav1.NamespaceDefault, "PersistentVolume", lost, "VolumeMissing", handles["lost"], home.Name)
		await(t, lab.subvolumes, handles["lost"], "be Lost", func(v *v1alpha1.Subvolume) bool { return v.Status.State == "Lost" })
		metrics := driverMetrics(t, home)
		contains(t, "the metrics", metrics, `btrfs_csi_orphans{kind="volume"} 2`, `btrfs_csi_orphans{kind="snapshot"} 1`, `btrfs_csi_orphans{kind="missing"} 1`)
		_, err := inDriver(home, "btrfs-csi", "check")
		if err == nil {
			t.Fatal("check says that nothing is wrong")
		}
		for _, handle := range orphans {
			contains(t, "check", err.Error(), fmt.Sprintf("%q", handle))
		}
		contains(t, "check", err.Error(), "Orphan", "Missing", lost)
	})
	for name, handle := range orphans {
		if find(t, home, handle) == nil {
			t.Errorf("%s was deleted, nobody asked for that", name)
		}
	}
	t.Run("LostIsDeleted", func(t *testing.T) { s.in(t).clear("lost") })
	t.Run("Deleted", func(t *testing.T) {
		upgrade(t, "--set", "orphans.policy=delete", "--set", "orphans.grace=1s")
		t.Cleanup(func() { upgrade(t) })
		// The time of grace begins with the policy. A driver searches at its start.
		for _, handle := range orphans {
			await(t, lab.subvolumes, handle, "be marked for deletion", func(v *v1alpha1.Subvolume) bool {
				return v.Annotations[driverName+"/marked-for-deletion-since"] != ""
			})
		}
		killDriver(t, home)
		for _, name := range []string{"forgotten", "snapshot"} {
			s.in(t).deleted(home, orphans[name])
		}
		for _, name := range []string{"used", "known", "snapshot known"} {
			if find(t, home, handles[name]) == nil {
				t.Errorf("%s was deleted too", name)
			}
		}
		s.in(t).sh("used", "echo hello > /data/file && sync && grep hello /data/file")
		s.in(t).deletePod("used")
		killDriver(t, home)
		s.in(t).deleted(home, orphans["used"])
	})
	s.pod("known")
	s.ran("known", home)
}

const (
	poolsDir = "/var/lib/btrfs-csi/pools"
	ledger   = "trusted.btrfs-csi" // the attribute with the record
)

// deleted waits until a volume or snapshot is gone from the disk, and its Subvolume, too.
func (s *space) deleted(node *cluster.Node, handle string) {
	s.Helper()
	awaitGone(s.T, lab.subvolumes, handle, (*v1alpha1.Subvolume)(nil))
	if left := find(s.T, node, handle); left != nil {
		s.Errorf("it was deleted from the mirror, on disk is %+v", left)
	}
}

// noFinalizers removes the finalizers of an object, so that its deletion does not wait.
var noFinalizers = []byte(`{"metadata":{"finalizers":null}}`)

// forget removes a claim and its PersistentVolume from the cluster, but not the volume.
func (s *space) forget(claim string) {
	s.Helper()
	volumes, claims := api().CoreV1().PersistentVolumes(), api().CoreV1().PersistentVolumeClaims(s.ns)
	v := s.volume(claim)
	// Else csi-provisioner would delete the volume.
	s.no(reclaim(v.Name, corev1.PersistentVolumeReclaimRetain))
	s.no(volumes.Delete(ctx, v.Name, metav1.DeleteOptions{}))
	_, err := volumes.Patch(ctx, v.Name, types.MergePatchType, noFinalizers, metav1.PatchOptions{})
	s.no(err)
	awaitGone(s.T, volumes, v.Name, v)
	s.no(claims.Delete(ctx, claim, metav1.DeleteOptions{}))
	_, err = claims.Patch(ctx, claim, types.MergePatchType, noFinalizers, metav1.PatchOptions{})
	s.no(ignoreGone(err))
	awaitGone(s.T, claims, claim, (*corev1.PersistentVolumeClaim)(nil))
}

// forgetSnapshot does the same to a snapshot.
func (s *space) forgetSnapshot(snapshot string) {
	s.Helper()
	contents := lab.snapshots.SnapshotV1().VolumeSnapshotContents()
	content := s.content(snapshot)
	_, err := contents.Patch(ctx, content.Name, types.MergePatchType, []byte(`{"spec":{"deletionPolicy":"Retain"}}`), metav1.PatchOptions{})
	s.no(err)
	s.deleteSnapshot(snapshot)
	s.no(ignoreGone(contents.Delete(ctx, content.Name, metav1.DeleteOptions{})))
	awaitGone(s.T, contents, content.Name, (*snapshotv1.VolumeSnapshotContent)(nil))
}

// age makes a volume or snapshot an hour older, because a young one is no orphan.
func age(t *testing.T, node *cluster.Node, handle string) {
	t.Helper()
	item := find(t, node, handle)
	if item == nil {
		t.Fatalf("%s is not on %s", handle, node.Name)
	}
	// The path outside of the node.
	slot := filepath.Join(filepath.Dir(lab.LogDir()), node.Name, "disk/btrfs-csi/pools", item.Pool, item.Path)
	data := make([]byte, 4096)
	n, err := unix.Getxattr(slot, ledger, data)
	if err != nil {
		t.Fatalf("record of %s: %v", slot, err)
	}
	var record struct {
		Version int                        `json:"version"`
		Record  map[string]json.RawMessage `json:"record"`
	}
	if err := json.Unmarshal(data[:n], &record); err != nil {
		t.Fatal(err)
	}
	record.Record["created"], _ = time.Now().Add(-time.Hour).MarshalJSON() // fails beyond the year 9999
	if data, err = json.Marshal(record); err == nil {
		err = unix.Setxattr(slot, ledger, data, unix.XATTR_REPLACE)
	}
	if err != nil {
		t.Fatalf("record of %s: %v", slot, err)
	}
}

// driverMetrics returns the metrics of the driver on a node.
func driverMetrics(t *testing.T, node *cluster.Node) string {
	t.Helper()
	pod := driverReady(t, node)
	text, err := api().CoreV1().Pods(driverNamespace).ProxyGet("http", pod.Name, "9808", "metrics", nil).DoRaw(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}
