//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// refusal is a claim that must be refused.
type refusal struct {
	name       string
	parameters map[string]string // of the StorageClass; nil: the chart's class
	claim      func(*corev1.PersistentVolumeClaim)
	says       []string
}

func smaller(than func(*corev1.PersistentVolumeClaim)) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		than(c)
		size("1Mi")(c)
	}
}

func block(c *corev1.PersistentVolumeClaim) {
	mode := corev1.PersistentVolumeBlock
	c.Spec.VolumeMode = &mode
}

// refusals copy the claim and the snapshot "source". The snapshot "gone" was deleted.
var refusals = []refusal{
	{name: "unknown-parameter", parameters: map[string]string{"compresion": "zstd"},
		says: []string{`parameter "compresion" is unknown`, "known are pool, compression"}},
	{name: "misspelt-value", parameters: map[string]string{"compression": "zsdt"},
		says: []string{"zstd:1 to zstd:15", `found "zsdt"`}},
	{name: "contradiction", parameters: map[string]string{"compression": "zstd", "nodatacow": "true"},
		says: []string{"contradict each other", "leave one out"}},
	{name: "unknown-pool", parameters: map[string]string{"pool": "fsat"},
		says: []string{`pool "fsat"`, "no node", `"default"`}},
	{name: "senseless-pool", parameters: map[string]string{"pool": "../etc"},
		says: []string{"a pool's name of up to 63", `found "../etc"`}},
	{name: "ext3", parameters: map[string]string{"csi.storage.k8s.io/fstype": "ext3"},
		says: []string{`filesystem type "ext3" is not supported`, "btrfs, ext4, xfs"}},
	{name: "small-xfs", parameters: map[string]string{"csi.storage.k8s.io/fstype": "xfs"}, claim: size("100Mi"),
		says: []string{"the least size with xfs is 314572800"}},
	{name: "many-writers", claim: access(corev1.ReadWriteMany),
		says: []string{"MULTI_NODE_MULTI_WRITER is not supported", "use ReadWriteOnce"}},
	{name: "many-readers", claim: access(corev1.ReadOnlyMany),
		says: []string{"MULTI_NODE_READER_ONLY is only supported", "snapshot"}},
	{name: "block", claim: func(c *corev1.PersistentVolumeClaim) { block(c); cloneOf("source")(c) },
		says: []string{"must have the same volume mode for cloning"}},
	{name: "other-filesystem", parameters: map[string]string{"csi.storage.k8s.io/fstype": "ext4"}, claim: cloneOf("source"),
		says: []string{"contains files, ext4 is wanted", "fsType of the source"}},
	{name: "no-such-snapshot", claim: restoreOf("gone"),
		says: []string{`"gone" not found`}},
	{name: "no-such-claim", claim: cloneOf("gone"),
		says: []string{"gone", "not found"}},
	{name: "smaller-clone", claim: smaller(cloneOf("source")),
		says: []string{"must be greater than or equal in size"}},
	{name: "smaller-restore", claim: smaller(restoreOf("source")),
		says: []string{"less than the size", "source snapshot"}},
}

// An Event on the claim says why it is refused, also if a user creates it together with a pod. The attempt
// leaves nothing behind.
func TestRefusedClaims(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.claim("source", selected(lab.Nodes[0]))
	s.bound("source")
	s.snapshot("source", "source")
	s.ready("source")
	s.snapshot("gone", "source")
	s.ready("gone")
	s.deleteSnapshot("gone")
	for _, r := range refusals {
		s.refuse(r)
	}
	began := time.Now()
	for _, r := range refusals {
		t.Run(r.name, func(t *testing.T) {
			t.Log(s.in(t).eventWith("PersistentVolumeClaim", r.name, r.says...))
		})
	}
	t.Logf("all of it was said within %.1f s", time.Since(began).Seconds())
	t.Run("no-size", func(t *testing.T) { s.in(t).testNoSize() })
	s.noneBut("source")
}

// testNoSize: the API server itself refuses a size of 0.
func (s *space) testNoSize() {
	_, err := s.tryClaim("no-size", size("0"))
	if !apierrors.IsInvalid(err) {
		s.Fatalf("a claim of size 0: %v, want that it is invalid", err)
	}
	contains(s.T, "the API server", err.Error(), "spec.resources", "must be greater than zero")
}

// refuse creates the claim and its pod.
func (s *space) refuse(r refusal) {
	s.Helper()
	if r.claim == nil {
		r.claim = func(*corev1.PersistentVolumeClaim) {}
	}
	if r.parameters == nil {
		s.claim(r.name, r.claim)
	} else {
		s.claim(r.name, r.claim, ofClass(newClass(s.T, r.parameters)))
	}
	s.pod(r.name, func(p *corev1.Pod) {
		if r.name == "block" {
			p.Spec.Containers[0].VolumeDevices = []corev1.VolumeDevice{{Name: "data", DevicePath: "/dev/data"}}
			p.Spec.Containers[0].VolumeMounts = nil
		}
	})
}

// eventWith waits for an Event on an object of the namespace whose message contains all words, and returns
// it.
func (s *space) eventWith(kind, name string, words ...string) (event string) {
	s.Helper()
	eventually(s.T, fmt.Sprintf("an Event on %s %s says %q", kind, name, words), func() error {
		list, err := api().CoreV1().Events(s.ns).List(ctx, metav1.ListOptions{
			FieldSelector: "involvedObject.kind=" + kind + ",involvedObject.name=" + name,
		})
		if err != nil {
			return err
		}
		var have []string
		for _, e := range list.Items {
			event = e.Reason + ": " + e.Message
			have = append(have, event)
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(e.Message, w) }) {
				return nil
			}
		}
		return fmt.Errorf("there is %q", have)
	})
	return event
}

// noneBut fails if the namespace has more on disk than a volume and a snapshot for objects of a name.
func (s *space) noneBut(name string) {
	s.Helper()
	for _, node := range lab.Nodes {
		items, err := inventory(node)
		s.no(err)
		for _, i := range items {
			if i.namespace() == s.ns && i.Labels["pvc/name"]+i.Labels["volumesnapshot/name"] != name {
				s.Errorf("%s has %s/%s (%s), made for what was refused", node.Name, i.Pool, i.Path, i.Status)
			}
		}
	}
}

// newSnapshotClass makes a VolumeSnapshotClass for the time of the test.
func newSnapshotClass(t *testing.T, driver string, parameters map[string]string) string {
	t.Helper()
	classes := lab.snapshots.SnapshotV1().VolumeSnapshotClasses()
	class, err := classes.Create(ctx, &snapshotv1.VolumeSnapshotClass{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"},
		Driver:     driver, Parameters: parameters, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := classes.Delete(ctx, class.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	return class.Name
}

func TestRefusedSnapshots(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.claim("source", selected(lab.Nodes[0]))
	s.bound("source")
	for name, c := range map[string]struct {
		class string
		says  []string
	}{
		"unknown-parameter": {newSnapshotClass(t, driverName, map[string]string{"nestedSubvolume": "skip"}),
			[]string{"nestedSubvolume", "is unknown; known are nestedSubvolumes"}}, // csi-snapshotter quotes what is quoted
		"misspelt-value": {newSnapshotClass(t, driverName, map[string]string{"nestedSubvolumes": "sikp"}),
			[]string{"refuse or skip", "sikp"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			s.snapshotOfClass(name, "source", c.class)
			// A conflict between the sidecars may come before.
			failed := await(t, lab.snapshots.SnapshotV1().VolumeSnapshots(s.ns), name, fmt.Sprintf("say %q", c.says), func(v *snapshotv1.VolumeSnapshot) bool {
				return v.Status != nil && v.Status.Error != nil && v.Status.Error.Message != nil &&
					!slices.ContainsFunc(c.says, func(word string) bool { return !strings.Contains(*v.Status.Error.Message, word) })
			})
			content := &space{t, metav1.NamespaceDefault}
			t.Log(content.eventWith("VolumeSnapshotContent", *failed.Status.BoundVolumeSnapshotContentName, c.says...))
			s.deleteFailed(failed)
		})
	}
	t.Run("no-such-claim", func(t *testing.T) {
		s := s.in(t)
		s.snapshot("no-such-claim", "gone")
		t.Log(s.eventWith("VolumeSnapshot", "no-such-claim", "cannot get claim from snapshot"))
	})
	t.Run("other-driver", func(t *testing.T) { s.in(t).testOtherDriver() })
	s.noneBut("source")
}

// testOtherDriver creates a snapshot with the class of another driver. Nobody would create or delete it.
func (s *space) testOtherDriver() {
	const other = "hostpath.csi.k8s.io"
	snapshot := s.snapshotOfClass("other-driver", "source", newSnapshotClass(s.T, other, nil))
	defer func() {
		contents, name := lab.snapshots.SnapshotV1().VolumeSnapshotContents(), "snapcontent-"+string(snapshot.UID)
		s.no(lab.snapshots.SnapshotV1().VolumeSnapshots(s.ns).Delete(ctx, snapshot.Name, metav1.DeleteOptions{}))
		await(s.T, contents, name, "be deleted", func(c *snapshotv1.VolumeSnapshotContent) bool { return c.DeletionTimestamp != nil })
		_, err := contents.Patch(ctx, name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
		s.no(err)
		awaitGone(s.T, lab.snapshots.SnapshotV1().VolumeSnapshots(s.ns), snapshot.Name, snapshot)
	}()
	s.Log(s.eventWith("VolumeSnapshot", snapshot.Name, other, driverName))
}

// deleteFailed deletes a snapshot that was never ready, and waits until it is gone. If several are deleted at
// once, the snapshot-controller takes each for a user of their claim and never removes its finalizer.
func (s *space) deleteFailed(snapshot *snapshotv1.VolumeSnapshot) {
	s.Helper()
	snapshots := lab.snapshots.SnapshotV1().VolumeSnapshots(s.ns)
	s.no(snapshots.Delete(ctx, snapshot.Name, metav1.DeleteOptions{}))
	awaitGone(s.T, snapshots, snapshot.Name, snapshot)
}

// snapshotOfClass creates a VolumeSnapshot of a claim with a class.
func (s *space) snapshotOfClass(name, claim, class string) *snapshotv1.VolumeSnapshot {
	s.Helper()
	snapshot, err := lab.snapshots.SnapshotV1().VolumeSnapshots(s.ns).Create(ctx, &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: snapshotv1.VolumeSnapshotSpec{
			VolumeSnapshotClassName: &class, Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim},
		},
	}, metav1.CreateOptions{})
	s.no(err)
	return snapshot
}
