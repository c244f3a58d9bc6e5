//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
)

// pruneRow is a row of `btrfs-csi prune`.
type pruneRow struct {
	Kind, Name, Node, Kept string
	Deleted                bool
}

// TestPrune: a node dies and is removed from the cluster. Prune lists its objects, and deletes those
// that no PersistentVolumeClaim or VolumeSnapshot uses. When the node comes back all data is there.
func TestPrune(t *testing.T) {
	here, gone := lab.Nodes[0], lab.Nodes[1]
	program := driverProgram(t, here)
	pool := poolID(t, gone, "default")
	s := newSpace(t)
	s.away(gone) // a pod, its claim and a snapshot, all of the name "source"
	s.claim("released", cloneOf("source"))
	s.claim("given-up", cloneOf("source"))
	s.snapshot("deleted", "source")
	volume, content := map[string]*corev1.PersistentVolume{}, map[string]*snapshotv1.VolumeSnapshotContent{}
	for _, claim := range []string{"source", "released", "given-up"} {
		volume[claim] = s.volume(claim)
	}
	for _, snapshot := range []string{"source", "deleted"} {
		content[snapshot] = s.content(snapshot)
	}
	s.deletePod("source")

	s.no(gone.Kill(ctx))
	t.Cleanup(func() {
		if !gone.Running() {
			s.no(gone.Start(ctx))
		}
		driverReady(t, gone)
	})
	kubectl(t, "delete", "node", gone.Name)
	s.deleteClaim("released")
	s.no(lab.snapshots.SnapshotV1().VolumeSnapshots(s.ns).Delete(ctx, "deleted", metav1.DeleteOptions{}))

	t.Run("List", func(t *testing.T) {
		eventually(t, "what is left is listed, and what is kept", func() error {
			found := prune(t, program)
			return sameRows(found, []string{
				"PersistentVolume " + volume["source"].Name + " kept", "PersistentVolume " + volume["released"].Name,
				"PersistentVolume " + volume["given-up"].Name + " kept",
				"VolumeSnapshotContent " + content["source"].Name + " kept", "VolumeSnapshotContent " + content["deleted"].Name,
			})
		})
		if found := prune(t, program, "--node", here.Name, "--delete"); len(found) > 0 {
			t.Errorf("%s is there, and is said to have left %+v", here.Name, found)
		}
	})
	t.Run("Delete", func(t *testing.T) {
		s := s.in(t)
		prune(t, program, "--delete")
		awaitGone(t, api().CoreV1().PersistentVolumes(), volume["released"].Name, volume["released"])
		awaitGone(t, lab.snapshots.SnapshotV1().VolumeSnapshotContents(), content["deleted"].Name, content["deleted"])
		awaitGone(t, lab.snapshots.SnapshotV1().VolumeSnapshots(s.ns), "deleted", (*snapshotv1.VolumeSnapshot)(nil))
		s.volume("source")
		s.content("source")
		// Delete the claim first, as prune says.
		s.deleteClaim("given-up")
		prune(t, program, "--delete")
		awaitGone(t, api().CoreV1().PersistentVolumes(), volume["given-up"].Name, volume["given-up"])
	})
	t.Run("Back", func(t *testing.T) {
		s := s.in(t)
		s.no(gone.Start(ctx))
		await(t, lab.pools, pool, "be on "+gone.Name, func(p *v1alpha1.Pool) bool {
			return p.Spec.NodeName == gone.Name && p.Status.State == "Ready"
		})
		for _, v := range volume {
			await(t, lab.subvolumes, v.Spec.CSI.VolumeHandle, "be there again", func(v *v1alpha1.Subvolume) bool { return v.Status.State == "Ready" })
		}
		s.pod("source")
		s.cameHome("source", gone)
		s.claim("restored", restoreOf("source"))
		s.pod("restored")
		s.cameHome("restored", gone)
		// The data of pruned objects is still on the disk.
		for _, claim := range []string{"released", "given-up"} {
			s.adopt(claim, volume[claim])
			s.pod(claim)
			s.cameHome(claim, gone)
		}
		s.adoptSnapshot("deleted", content["deleted"])
		s.ready("deleted")
	})
}

// lose prunes the objects of a lost disk with the volume of a claim and a snapshot of the same name.
func (s *space) lose(program string, disk *drive, name string) {
	s.Helper()
	volume, content := s.volume(name), s.content(name)
	rows := []string{"PersistentVolume " + volume.Name, "VolumeSnapshotContent " + content.Name}
	s.no(sameRows(prune(s.T, program, "--pool-id", disk.id, "--delete"), []string{rows[0] + " kept", rows[1] + " kept"}))
	s.no(lab.snapshots.SnapshotV1().VolumeSnapshots(s.ns).Delete(ctx, name, metav1.DeleteOptions{}))
	s.deleteClaim(name)
	eventually(s.T, "nothing of it is wanted any more", func() error {
		return sameRows(prune(s.T, program, "--pool-id", disk.id), rows)
	})
	if found := prune(s.T, program, "--delete"); len(found) > 0 {
		s.Errorf("the disk may come back, and cleared is %+v", found)
	}
	prune(s.T, program, "--pool-id", disk.id, "--delete")
	awaitGone(s.T, api().CoreV1().PersistentVolumes(), volume.Name, volume)
	awaitGone(s.T, lab.snapshots.SnapshotV1().VolumeSnapshotContents(), content.Name, content)
	awaitGone(s.T, lab.snapshots.SnapshotV1().VolumeSnapshots(s.ns), name, (*snapshotv1.VolumeSnapshot)(nil))
	awaitGone(s.T, lab.subvolumes, volume.Spec.CSI.VolumeHandle, (*v1alpha1.Subvolume)(nil))
	awaitGone(s.T, lab.pools, disk.id, (*v1alpha1.Pool)(nil))
	disk.id = "" // the pool is already removed
}

// driverProgram copies the binary out of the driver's image, to run it outside of containers.
func driverProgram(t *testing.T, node *cluster.Node) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "btrfs-csi")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := node.Command(ctx, "sh", "-c", "cat /proc/$(pidof btrfs-csi)/root/usr/local/bin/btrfs-csi")
	cmd.Stdout = f
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return path
}

// prune runs `btrfs-csi prune` as an administrator of the cluster.
func prune(t *testing.T, program string, args ...string) (rows []pruneRow) {
	t.Helper()
	out := must(t)(runTool(program, append([]string{"prune", "-o", "json"}, args...)...))
	if err := json.Unmarshal([]byte(out), &rows); err != nil {
		t.Fatal(err)
	}
	return rows
}

// sameRows compares the rows, without Subvolumes and Pools, with the wanted ones.
func sameRows(found []pruneRow, want []string) error {
	var have []string
	for _, l := range found {
		row := l.Kind + " " + l.Name
		if l.Kept != "" {
			row += " kept"
		}
		if l.Kind != "Subvolume" && l.Kind != "Pool" {
			have = append(have, row)
		}
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		return fmt.Errorf("wanted are\n%q, found\n%q", want, have)
	}
	return nil
}

// adopt creates a claim and a PersistentVolume for a volume that the cluster has lost.
func (s *space) adopt(claim string, was *corev1.PersistentVolume) {
	s.Helper()
	v := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: was.Name, Annotations: map[string]string{"pv.kubernetes.io/provisioned-by": driverName}},
		Spec:       was.Spec,
	}
	v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: s.ns, Name: claim}
	_, err := api().CoreV1().PersistentVolumes().Create(ctx, v, metav1.CreateOptions{})
	s.no(err)
	s.claim(claim, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = v.Name })
	s.bound(claim)
}

// adoptSnapshot does the same for a snapshot.
func (s *space) adoptSnapshot(name string, was *snapshotv1.VolumeSnapshotContent) {
	s.Helper()
	content, err := lab.snapshots.SnapshotV1().VolumeSnapshotContents().Create(ctx, &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			Driver: driverName, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
			VolumeSnapshotRef: corev1.ObjectReference{Namespace: s.ns, Name: name},
			Source:            snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: was.Status.SnapshotHandle},
		},
	}, metav1.CreateOptions{})
	s.no(err)
	_, err = lab.snapshots.SnapshotV1().VolumeSnapshots(s.ns).Create(ctx, &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{VolumeSnapshotContentName: &content.Name}},
	}, metav1.CreateOptions{})
	s.no(err)
}
