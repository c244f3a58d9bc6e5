//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
)

// test/e2e/policies attacks the policies with the token of one node, without drivers. These tests do so
// with running drivers.

// The driver of one node sets an owner reference on a snapshot of another node. Without the policies the
// garbage collector would delete the snapshot, since that owner does not exist.
func TestSnapshotOfAnotherNode(t *testing.T) {
	t.Parallel()
	s, mine, theirs := newSpace(t), lab.Nodes[0], lab.Nodes[1]
	s.claim("data", selected(theirs))
	s.snapshot("data", "data")
	content := s.content("data")
	before := find(t, theirs, *content.Status.SnapshotHandle)
	attacker, err := dynamic.NewForConfig(driverOf(t, mine))
	s.no(err)
	contents := attacker.Resource(schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshotcontents"})
	for _, metadata := range []string{
		fmt.Sprintf(`"labels":{"snapshot.storage.kubernetes.io/managed-by":%q},"annotations":{"snapshot.storage.kubernetes.io/volumesnapshot-being-deleted":"yes"},`+
			`"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"gone","uid":"99999999-9999-4999-8999-999999999999"}]`, mine.Name),
		`"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"gone","uid":"99999999-9999-4999-8999-999999999999"}]`,
	} {
		_, err := contents.Patch(ctx, content.Name, types.MergePatchType, []byte(`{"metadata":{`+metadata+`}}`), metav1.PatchOptions{})
		if err == nil || !strings.Contains(err.Error(), "ValidatingAdmissionPolicy '"+release) {
			t.Errorf("a policy has to refuse {%s}; instead: %v", metadata, err)
		}
	}
	// It may take the content. The driver of the other node takes it back.
	_, err = contents.Patch(ctx, content.Name, types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"labels":{"snapshot.storage.kubernetes.io/managed-by":%q}}}`, mine.Name), metav1.PatchOptions{})
	s.no(err)
	eventually(t, "the other node has its snapshot again", func() error {
		if now := s.content("data"); now.UID != content.UID || now.DeletionTimestamp != nil || now.Labels["snapshot.storage.kubernetes.io/managed-by"] != theirs.Name {
			return fmt.Errorf("it is %+v", now.ObjectMeta)
		}
		return nil
	})
	if now := find(t, theirs, before.ID); now == nil || now.UUID != before.UUID {
		t.Errorf("the snapshot was %+v, and is %+v", before, now)
	}
}

// An attacker with the token of one node takes the Pool of another node again and again, while the driver
// there restarts. That driver serves the pool all the same.
func TestPoolTakenWhileItsDriverRestarts(t *testing.T) {
	mine, theirs := lab.Nodes[0], lab.Nodes[1]
	id := poolID(t, theirs, "default")
	_, pools, err := ours(driverOf(t, mine))
	if err != nil {
		t.Fatal(err)
	}
	claiming, stop := context.WithCancel(ctx)
	taken := 0
	var attack sync.WaitGroup
	attack.Go(func() {
		for ; claiming.Err() == nil; time.Sleep(100 * time.Millisecond) {
			pool, err := pools.Get(ctx, id, metav1.GetOptions{})
			if err != nil || pool.Spec.NodeName == mine.Name {
				continue
			}
			pool.Spec.NodeName = mine.Name
			metav1.SetMetaDataAnnotation(&pool.ObjectMeta, driverName+"/taken-from", theirs.Name)
			if _, err := pools.Update(ctx, pool, metav1.UpdateOptions{}); err == nil {
				taken++
			}
		}
	})
	before := driverReady(t, theirs)
	killDriver(t, theirs)
	eventually(t, "the driver was started again", func() error {
		if now := driverReady(t, theirs); restarts(now) == restarts(before) {
			return fmt.Errorf("%d times", restarts(now))
		}
		return nil
	})
	stop()
	attack.Wait()
	if taken == 0 {
		t.Error("the pool was never taken, so nothing is proved")
	}
	await(t, lab.pools, id, "be served by its node", func(p *v1alpha1.Pool) bool { return p.Spec.NodeName == theirs.Name && p.Status.State == "Ready" })
	if out, err := inDriver(theirs, "btrfs-csi", "pools"); err != nil || !strings.Contains(out, "Ready") {
		t.Errorf("btrfs-csi pools: %v\n%s", err, out)
	}
	if log := logOf(driverReady(t, theirs), "btrfs-csi"); strings.Contains(log, "Pool excluded") || strings.Contains(log, "Forgetting a pool") {
		t.Errorf("the pool was out of service:\n%s", log)
	}
	check(t, theirs)
}

// restarts returns the number of restarts of the driver's container.
func restarts(pod *corev1.Pod) int32 {
	for _, c := range pod.Status.ContainerStatuses {
		if c.Name == "btrfs-csi" {
			return c.RestartCount
		}
	}
	return 0
}

// A volume with two PersistentVolumes is not deleted with the first one.
func TestSecondPersistentVolume(t *testing.T) {
	t.Parallel()
	s, node := newSpace(t), lab.Nodes[0]
	s.claim("data", selected(node))
	volume, path := s.volume("data"), s.pathOf("volume", "data")
	volumes := api().CoreV1().PersistentVolumes()
	second := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "second-" + s.ns}, Spec: *volume.Spec.DeepCopy()}
	second.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	second.Spec.ClaimRef = &corev1.ObjectReference{Namespace: s.ns, Name: "none"}
	_, err := volumes.Create(ctx, second, metav1.CreateOptions{})
	s.no(err)
	t.Cleanup(func() { s.no(ignoreGone(volumes.Delete(ctx, second.Name, metav1.DeleteOptions{}))) })
	await(t, volumes, second.Name, "be Available", inPhase(corev1.VolumeAvailable))

	s.no(api().CoreV1().PersistentVolumeClaims(s.ns).Delete(ctx, "data", metav1.DeleteOptions{}))
	awaitEvent(t, "default", "PersistentVolume", volume.Name, "VolumeFailedDelete", second.Name)
	onNode(t, node, "test -e "+path)
	s.no(volumes.Delete(ctx, second.Name, metav1.DeleteOptions{}))
	awaitGone(t, volumes, volume.Name, volume)
	onNode(t, node, "! test -e "+path)
}
