//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
)

// TestProvision creates, uses and deletes a volume on each node.
func TestProvision(t *testing.T) {
	t.Parallel()
	eachNode(t, testProvision)
}

func testProvision(t *testing.T, node *cluster.Node) {
	s := newSpace(t)
	s.claim("data", size("64Mi"))
	s.pod("data", on(node))
	if pod := s.running("data"); pod.Spec.NodeName != node.Name {
		t.Fatalf("the pod runs on %s", pod.Spec.NodeName)
	}
	volume := s.volume("data")
	testVolume(t, node, volume)

	s.sh("data", "echo kept > /data/file; grep ' /data btrfs ' /proc/mounts")
	testSize(s, "data", 64)
	s.deletePod("data")
	// The kubelet unstages after the pod is gone.
	eventually(t, "its volume is mounted nowhere", func() error {
		mounts, err := volumeMounts(node)
		if err == nil && slices.ContainsFunc(mounts, func(m string) bool { return strings.Contains(m, volume.Name) }) {
			err = fmt.Errorf("the pod is gone, and there are %q", mounts)
		}
		return err
	})
	s.pod("second", using("data"))
	if pod := s.running("second"); pod.Spec.NodeName != node.Name {
		t.Errorf("a pod was scheduled on %s, where its volume is not", pod.Spec.NodeName)
	}
	s.sh("second", "grep -x kept /data/file")

	s.deletePod("second")
	s.deleteClaim("data")
	awaitGone(t, api().CoreV1().PersistentVolumes(), volume.Name, volume)
	if i := find(t, node, volume.Spec.CSI.VolumeHandle); i != nil {
		t.Errorf("the volume is gone and on disk there is %+v", i)
	}
	awaitGone(t, lab.subvolumes, volume.Name, (*v1alpha1.Subvolume)(nil))
}

// testVolume compares a PersistentVolume with the disk.
func testVolume(t *testing.T, node *cluster.Node, v *corev1.PersistentVolume) {
	t.Helper()
	i := find(t, node, v.Spec.CSI.VolumeHandle)
	if i == nil {
		t.Fatalf("volume %s is not on %s", v.Name, node.Name)
	}
	if i.Kind != "Volume" || i.Pool != "default" || i.Status != "Ready" || i.Size != v.Spec.Capacity.Storage().Value() {
		t.Errorf("on disk there is %+v for a volume of %v", i, v.Spec.Capacity.Storage())
	}
	if v.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
		t.Errorf("reclaim policy %s", v.Spec.PersistentVolumeReclaimPolicy)
	}
	terms := v.Spec.NodeAffinity.Required.NodeSelectorTerms
	if len(terms) != 1 || len(terms[0].MatchExpressions) != 1 || terms[0].MatchExpressions[0].Key != topologyPrefix+i.PoolID {
		t.Errorf("node affinity %+v, want the pool's, %s", terms, i.PoolID)
	}
	for _, other := range lab.Nodes {
		if other != node && find(t, other, i.ID) != nil {
			t.Errorf("volume %s is on %s too", i.ID, other.Name)
		}
	}
}

// testSize writes more than fits into a volume. The write has to fail at the size without the volume's
// metadata, and never beyond the size.
func testSize(s *space, pod string, mib int) {
	s.Helper()
	exceeds(s, pod, "dd if=/dev/zero of=/data/fill bs=1M count=1000")
	if have := parse(s.T, s.sh(pod, "wc -c < /data/fill")) >> 20; have > int64(mib) || have < int64(mib)*3/4 {
		s.Errorf("a volume of %d MiB contains a file of %d MiB", mib, have)
	}
	s.sh(pod, "rm /data/fill; sync /data; echo fits > /data/small")
}

// exceeds runs a command in a pod that must fail, because it writes more than fits into the volume.
func exceeds(s *space, pod, command string) {
	s.Helper()
	if out, err := s.try(pod, command); err == nil || !strings.Contains(err.Error(), "Disk quota exceeded") {
		s.Fatalf("%s: %v %s; want EDQUOT", command, err, out)
	}
}

// parse returns the number that a command printed.
func parse(t *testing.T, text string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestDeleteWaitsForPod deletes the claim of a pod that runs.
func TestDeleteWaitsForPod(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.claim("data")
	s.pod("data")
	s.running("data")
	volume := s.volume("data")
	if err := api().CoreV1().PersistentVolumeClaims(s.ns).Delete(ctx, "data", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.sh("data", "echo still here > /data/file; cat /data/file")
	s.deletePod("data")
	awaitGone(t, api().CoreV1().PersistentVolumes(), volume.Name, volume)
}
