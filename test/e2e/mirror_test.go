//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
)

const annotationPrefix = "btrfs-csi.github.io/"

// lineage are the lineage annotations.
func lineage(o metav1.Object) map[string]string {
	found := map[string]string{}
	for _, key := range []string{"parent", "uuid", "parent-uuid", "received-uuid", "subvolume-id", "created-transid"} {
		if value, ok := o.GetAnnotations()[annotationPrefix+key]; ok {
			found[key] = value
		}
	}
	return found
}

// lineageOnDisk returns the expected lineage, read from btrfs.
func lineageOnDisk(t *testing.T, node *cluster.Node, path, parent string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for line := range strings.Lines(onNode(t, node, "btrfs subvolume show "+path)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		names := map[string]string{
			"UUID": "uuid", "Parent UUID": "parent-uuid", "Received UUID": "received-uuid",
			"Subvolume ID": "subvolume-id", "Gen at creation": "created-transid",
		}
		if value = strings.TrimSpace(value); names[key] != "" && value != "-" {
			found[names[key]] = value
		}
	}
	if parent != "" {
		found["parent"] = parent
	}
	return found
}

// TestMirror compares the Subvolumes, PersistentVolumes and VolumeSnapshotContents with the disk.
func TestMirror(t *testing.T) {
	s, node := newSpace(t), lab.Nodes[0]
	pool := poolID(t, node, "default")
	s.claim("data")
	s.pod("data", on(node))
	s.running("data")
	s.sh("data", "dd if=/dev/urandom of=/data/file bs=1M count=40; sync /data")
	s.snapshot("snapshot", "data")
	s.claim("restored", restoreOf("snapshot"))
	s.claim("view", size("64Mi"), access(corev1.ReadOnlyMany), restoreOf("snapshot"))

	volume, restored, view, content := s.volume("data"), s.volume("restored"), s.volume("view"), s.content("snapshot")
	handle := *content.Status.SnapshotHandle
	for _, c := range []struct {
		kind, area, name, parent, claim, used string
		standsFor                             func() (metav1.Object, error)
	}{
		{"Volume", "active", volume.Spec.CSI.VolumeHandle, "", "data", "",
			func() (metav1.Object, error) {
				return api().CoreV1().PersistentVolumes().Get(ctx, volume.Name, metav1.GetOptions{})
			}},
		{"Snapshot", "committed", handle, volume.Spec.CSI.VolumeHandle, "snapshot", "40Mi",
			func() (metav1.Object, error) {
				return lab.snapshots.SnapshotV1().VolumeSnapshotContents().Get(ctx, content.Name, metav1.GetOptions{})
			}},
		{"Volume", "active", restored.Spec.CSI.VolumeHandle, handle, "restored", "40Mi",
			func() (metav1.Object, error) {
				return api().CoreV1().PersistentVolumes().Get(ctx, restored.Name, metav1.GetOptions{})
			}},
		{"ReadOnlyVolume", "view", view.Spec.CSI.VolumeHandle, handle, "view", "40Mi",
			func() (metav1.Object, error) {
				return api().CoreV1().PersistentVolumes().Get(ctx, view.Name, metav1.GetOptions{})
			}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			have := await(t, lab.subvolumes, c.name, "be ready, and name what stands for it", func(v *v1alpha1.Subvolume) bool {
				return v.Status.State == "Ready" && v.Annotations[annotationPrefix+"object"] != ""
			})
			size := have.Spec.Size
			if size == nil || size.String() != "64Mi" || have.Status.Size.Cmp(*size) != 0 {
				t.Errorf("size %v, and %v in the status; want 64Mi", size, have.Status.Size)
			}
			have.Spec.Size = nil
			if want := (v1alpha1.SubvolumeSpec{ID: c.name, Kind: c.kind, NodeName: node.Name, Pool: "default", PoolID: pool}); have.Spec != want {
				t.Errorf("the spec is %+v, want %+v", have.Spec, want)
			}
			if claim := have.Annotations[annotationPrefix+"requested-by"]; claim != s.ns+"/"+c.claim {
				t.Errorf("it says that it is for %q", claim)
			}
			want := lineageOnDisk(t, node, "/var/lib/btrfs-csi/pools/default/"+c.area+"/"+c.name+"/fs", c.parent)
			if !maps.Equal(lineage(have), want) {
				t.Errorf("the Subvolume says %v, the disk %v", lineage(have), want)
			}
			eventually(t, "the object that stands for it has the lineage too", func() error {
				o, err := c.standsFor()
				if err == nil && (!maps.Equal(lineage(o), want) || o.GetName() != have.Annotations[annotationPrefix+"object"]) {
					err = fmt.Errorf("%s says %v; the disk %v, and the Subvolume that %q stands for it",
						o.GetName(), lineage(o), want, have.Annotations[annotationPrefix+"object"])
				}
				return err
			})
			columns := strings.Fields(kubectl(t, "get", "subvolumes", c.name, "--no-headers", "-o", "wide"))
			shown := strings.Join(columns[:len(columns)-1], " ") // without the age
			if want := strings.Join([]string{c.name, "default", node.Name, c.kind, c.parent, "64Mi", c.used, "Ready", s.ns + "/" + c.claim}, " "); c.used != "" && shown != want {
				t.Errorf("kubectl shows %s, want %s", shown, want)
			}
		})
	}
	t.Run("headers", func(t *testing.T) {
		for resource, want := range map[string]string{
			"subvolumes":          "NAME POOL NODE KIND PARENT SIZE USED STATE AGE",
			"pools." + driverName: "NAME POOL NODE SIZE AVAILABLE QUOTA SUBVOLUMES STATE AGE",
		} {
			header, _, _ := strings.Cut(kubectl(t, "get", resource), "\n")
			if have := strings.Join(strings.Fields(header), " "); have != want {
				t.Errorf("kubectl get %s shows %s, want %s", resource, have, want)
			}
		}
	})
	t.Run("pool", func(t *testing.T) {
		items, err := inventory(node)
		s.no(err)
		now := await(t, lab.pools, pool, fmt.Sprintf("count %d subvolumes", len(items)), func(p *v1alpha1.Pool) bool {
			return p.Status.Subvolumes == int64(len(items))
		})
		columns := strings.Fields(kubectl(t, "get", "pools."+driverName, pool, "--no-headers"))
		want := fmt.Sprintln(pool, "default", node.Name, "10Gi", now.Status.Available.String(), lab.quota, now.Status.Subvolumes, "Ready")
		if shown := fmt.Sprintln(strings.Join(columns[:len(columns)-1], " ")); shown != want {
			t.Errorf("kubectl shows %s, want %s", shown, want)
		}
	})
}

// TestMirrorComesBack deletes and changes the objects of the drivers. The drivers write them again, and no
// volume changes.
func TestMirrorComesBack(t *testing.T) {
	s, node := newSpace(t), lab.Nodes[1]
	s.claim("data")
	s.pod("data", on(node))
	s.running("data")
	s.sh("data", "echo kept > /data/file")
	name := s.volume("data").Spec.CSI.VolumeHandle
	whole := func(v *v1alpha1.Subvolume) bool { return v.Status.State == "Ready" && v.Status.Used != nil }
	before := await(t, lab.subvolumes, name, "be ready", whole)

	t.Run("subvolume deleted", func(t *testing.T) {
		s.no(lab.subvolumes.Delete(ctx, name, metav1.DeleteOptions{}))
		after := await(t, lab.subvolumes, name, "be back", func(v *v1alpha1.Subvolume) bool { return v.UID != before.UID && whole(v) })
		if !after.Spec.Size.Equal(*before.Spec.Size) || !maps.Equal(after.Annotations, before.Annotations) {
			t.Errorf("it is back as\n%swant\n%s", describe(after), describe(before))
		}
	})
	t.Run("subvolume changed", func(t *testing.T) {
		patch := `{"metadata":{"annotations":{"btrfs-csi.github.io/uuid":"another"}},"spec":{"pool":"another"}}`
		_, err := lab.subvolumes.Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		s.no(err)
		_, err = lab.subvolumes.Patch(ctx, name, types.MergePatchType, []byte(`{"status":{"state":"Lost"}}`), metav1.PatchOptions{}, "status")
		s.no(err)
		await(t, lab.subvolumes, name, "be as it was", func(v *v1alpha1.Subvolume) bool {
			return v.Spec.Pool == "default" && v.Status.State == "Ready" && maps.Equal(v.Annotations, before.Annotations)
		})
	})
	t.Run("pool deleted", func(t *testing.T) {
		pool, err := lab.pools.Get(ctx, poolID(t, node, "default"), metav1.GetOptions{})
		s.no(err)
		s.no(lab.pools.Delete(ctx, pool.Name, metav1.DeleteOptions{}))
		after := await(t, lab.pools, pool.Name, "be back", func(p *v1alpha1.Pool) bool { return p.UID != pool.UID && p.Status.State == "Ready" })
		if after.Spec != pool.Spec {
			t.Errorf("it is back as that of %+v", after.Spec)
		}
	})
	t.Run("volume annotated by others", func(t *testing.T) {
		patch := `{"metadata":{"annotations":{"btrfs-csi.github.io/uuid":null,"example.com/note":"kept"}}}`
		v := s.volume("data")
		_, err := api().CoreV1().PersistentVolumes().Patch(ctx, v.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		s.no(err)
		await(t, api().CoreV1().PersistentVolumes(), v.Name, "have its lineage again", func(v *corev1.PersistentVolume) bool {
			return v.Annotations[annotationPrefix+"uuid"] == before.Annotations[annotationPrefix+"uuid"] && v.Annotations["example.com/note"] == "kept"
		})
	})
	s.sh("data", "grep -x kept /data/file")
	testVolume(t, node, s.volume("data"))
}

// TestMirrorQuiet: the drivers write nothing while nothing changes. It is too short for a resync, which
// TestQuiet of pkg/cluster covers.
func TestMirrorQuiet(t *testing.T) {
	s := newSpace(t)
	s.claim("data")
	s.pod("data")
	s.running("data")
	s.sh("data", "dd if=/dev/urandom of=/data/file bs=1M count=30; sync /data")
	s.snapshot("snapshot", "data")
	s.claim("restored", restoreOf("snapshot"))
	s.bound("restored")

	// Wait until all that was just created is published.
	settled := time.Now().Add(2 * patience)
	for {
		seen := s.watchAll(time.Minute)
		if seen == "" {
			return
		}
		if time.Now().After(settled) {
			t.Fatalf("nothing has changed, and there is written:\n%s", seen)
		}
	}
}

// watchAll returns the first change of an object that drivers and sidecars write, or "" after some time.
func (s *space) watchAll(d time.Duration) string {
	s.Helper()
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	select {
	case event := <-s.changes(ctx):
		return fmt.Sprintf("%s %T %+v", event.Type, event.Object, event.Object)
	case <-ctx.Done():
		return ""
	}
}

// rest waits until drivers and sidecars no longer write.
func (s *space) rest() {
	s.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	changes := s.changes(ctx)
	for {
		select {
		case <-changes:
		case <-time.After(2 * time.Second): // the mirror postpones writes for less
			return
		case <-ctx.Done():
			s.Fatalf("something is written for %v", patience)
		}
	}
}

// changes sends the changes of objects that drivers and sidecars write, until ctx ends.
func (s *space) changes(ctx context.Context) <-chan watch.Event {
	s.Helper()
	changes := make(chan watch.Event)
	for _, start := range []func(context.Context, metav1.ListOptions) (watch.Interface, error){
		lab.subvolumes.Watch, lab.pools.Watch, api().CoreV1().PersistentVolumes().Watch, api().CoreV1().PersistentVolumeClaims("").Watch,
		lab.snapshots.SnapshotV1().VolumeSnapshots("").Watch, lab.snapshots.SnapshotV1().VolumeSnapshotContents().Watch,
		api().StorageV1().CSINodes().Watch, api().StorageV1().CSIStorageCapacities("").Watch, api().CoreV1().Events(s.ns).Watch,
	} {
		// All kinds of a cluster share the resource version.
		now, err := api().CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
		s.no(err)
		w, err := start(ctx, metav1.ListOptions{ResourceVersion: now.ResourceVersion})
		s.no(err)
		context.AfterFunc(ctx, w.Stop)
		go func() {
			for event := range w.ResultChan() {
				select {
				case changes <- event:
				case <-ctx.Done():
				}
			}
		}()
	}
	return changes
}

// TestAPIServerAway cuts the API server off for a while. Meanwhile volumes are being created, and one driver
// restarts, which has to serve without the API server.
func TestAPIServerAway(t *testing.T) {
	s := newSpace(t)
	var before []*corev1.Pod
	for _, node := range lab.Nodes {
		s.claim(node.Name)
		s.pod(node.Name, on(node), writing)
	}
	for _, node := range lab.Nodes {
		before = append(before, s.running(node.Name))
	}
	volumes := []*corev1.PersistentVolume{s.volume(lab.Nodes[0].Name), s.volume(lab.Nodes[1].Name)}
	var made []string
	for n := range 20 {
		name := fmt.Sprintf("made-%d", n)
		s.claim(name, selected(lab.Nodes[n%2]))
		made = append(made, name)
	}
	driver := driverReady(t, lab.Nodes[0])
	restore := cutOff(t)
	away := time.Now()
	if _, err := api().Discovery().ServerVersion(); err == nil {
		t.Error("the API server answers")
	}
	restartsAlone(t, lab.Nodes[0], driver)
	remove := s.servesAlone(lab.Nodes[0])
	for {
		for i, node := range lab.Nodes {
			goesOn(t, node, volumes[i])
		}
		if time.Since(away) > 20*time.Second {
			break
		}
	}
	restore()
	remove()
	for _, name := range made {
		v := s.volume(name)
		await(t, lab.subvolumes, v.Spec.CSI.VolumeHandle, "be mirrored", func(v *v1alpha1.Subvolume) bool { return v.Status.State == "Ready" })
		await(t, api().CoreV1().PersistentVolumes(), v.Name, "have its lineage", func(v *corev1.PersistentVolume) bool { return lineage(v)["uuid"] != "" })
	}
	for i, node := range lab.Nodes {
		goesOn(t, node, volumes[i])
		now := s.running(node.Name)
		if now.UID != before[i].UID || now.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("the pod on %s was started again: %+v", node.Name, now.Status)
		}
		driverReady(t, node)
	}
	eventually(t, "what is on disk is what the cluster knows of", s.compare)
}

// cutOff closes the API server's port, also for existing connections, until the returned function is called.
func cutOff(t *testing.T) (restore func()) {
	t.Helper()
	rule := []string{"INPUT", "--proto", "tcp", "--dport", "443", "--jump", "REJECT", "--reject-with", "tcp-reset"}
	table := func(what string) error {
		out, err := exec.Command("iptables", append([]string{"--wait", what}, rule...)...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("iptables %s: %w: %s", what, err, out)
		}
		return err
	}
	if err := table("--insert"); err != nil {
		t.Fatal(err)
	}
	cut := true
	restore = func() {
		if err := table("--delete"); err != nil {
			t.Error(err)
		}
		cut = false
	}
	t.Cleanup(func() {
		if cut {
			restore()
		}
	})
	return restore
}
