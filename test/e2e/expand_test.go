//go:build e2e

package e2e

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
)

// elected returns the node whose csi-resizer is elected.
func elected(t *testing.T) *cluster.Node {
	t.Helper()
	lease, err := api().CoordinationV1().Leases(driverNamespace).Get(ctx, "external-resizer-btrfs-csi-github-io", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod, err := api().CoreV1().Pods(driverNamespace).Get(ctx, *lease.Spec.HolderIdentity, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return node(t, pod.Spec.NodeName)
}

// TestExpandOnline expands a full volume of each node. The elected csi-resizer runs on only one of them.
func TestExpandOnline(t *testing.T) {
	t.Parallel()
	eachNode(t, func(t *testing.T, node *cluster.Node) {
		t.Logf("the elected resizer is on %s", elected(t).Name)
		s := newSpace(t)
		s.claim("data", size("64Mi"))
		s.pod("data", on(node))
		before := s.running("data")
		const write = "dd if=/dev/zero of=/data/file bs=1M count=80"
		exceeds(s, "data", write)
		s.expand("data", "128Mi")
		s.expanded("data", "128Mi")
		s.sh("data", write)
		if now := s.running("data"); now.UID != before.UID || now.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("the pod was started again: %+v", now.Status)
		}
		testVolume(t, node, s.volume("data"))
		s.sh("data", "rm /data/file; sync /data")
		testSize(s, "data", 128)
	})
}

// TestExpandOffline expands a volume of each node that no pod uses.
func TestExpandOffline(t *testing.T) {
	t.Parallel()
	eachNode(t, func(t *testing.T, node *cluster.Node) {
		s := newSpace(t)
		s.claim("data", size("64Mi"), selected(node))
		s.bound("data")
		s.expand("data", "128Mi")
		s.expanded("data", "128Mi")
		testVolume(t, node, s.volume("data"))
		s.pod("data")
		s.running("data")
		testSize(s, "data", 128)
	})
}

// TestExpandOwnerAway requests the expansion of a volume whose node does not answer. The expansion must
// happen when the node is back, and not be reported before.
func TestExpandOwnerAway(t *testing.T) {
	for _, c := range []struct {
		how        string
		away, back func(*testing.T, *cluster.Node)
	}{
		{"driver hangs",
			func(t *testing.T, n *cluster.Node) {
				onNode(t, n, "kill -STOP $(pidof btrfs-csi)")
				t.Cleanup(func() { onNode(t, n, "kill -CONT $(pidof btrfs-csi)") })
			},
			func(t *testing.T, n *cluster.Node) { onNode(t, n, "kill -CONT $(pidof btrfs-csi)") }},
		{"node is off", powerOff, powerOn},
	} {
		t.Run(c.how, func(t *testing.T) {
			owner := lab.Nodes[0]
			if elected(t) == owner {
				owner = lab.Nodes[1]
			}
			s := newSpace(t)
			s.claim("data", size("64Mi"), selected(owner))
			volume := s.volume("data")
			await(t, lab.subvolumes, volume.Name, "be mirrored", func(v *v1alpha1.Subvolume) bool { return v.Status.Size != nil })
			c.away(t, owner)
			s.expand("data", "128Mi")
			s.event("PersistentVolumeClaim", "data", "VolumeResizeFailed", owner.Name)
			claim, err := api().CoreV1().PersistentVolumeClaims(s.ns).Get(ctx, "data", metav1.GetOptions{})
			if err != nil || claim.Status.Capacity.Storage().String() != "64Mi" {
				t.Errorf("the claim is of %v (%v) though nobody can have expanded it", claim.Status.Capacity.Storage(), err)
			}
			c.back(t, owner)
			s.expanded("data", "128Mi")
			testVolume(t, owner, s.volume("data"))
			s.expandedOnce(owner, volume)
			s.pod("data")
			s.running("data")
			testSize(s, "data", 128)
		})
	}
}

func powerOff(t *testing.T, node *cluster.Node) {
	if err := node.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !node.Running() { // the test has failed
			powerOn(t, node)
		}
	})
}

func powerOn(t *testing.T, node *cluster.Node) {
	if err := node.Start(ctx); err != nil {
		t.Fatal(err)
	}
	driverReady(t, node)
}

// expandedOnce fails unless the logs of all drivers have the expansion once.
func (s *space) expandedOnce(owner *cluster.Node, volume *corev1.PersistentVolume) {
	s.Helper()
	var lines []string
	for _, node := range lab.Nodes {
		pod := driverReady(s.T, node)
		log, err := api().CoreV1().Pods(driverNamespace).GetLogs(pod.Name, &corev1.PodLogOptions{Container: "btrfs-csi"}).DoRaw(ctx)
		s.no(err)
		for line := range strings.Lines(string(log)) {
			// Only the log of the owner has this line.
			if strings.Contains(line, `"Volume expanded"`) && strings.Contains(line, "askedBy") && strings.Contains(line, volume.Spec.CSI.VolumeHandle) {
				lines = append(lines, node.Name+": "+line)
			}
		}
	}
	if len(lines) != 1 || !strings.HasPrefix(lines[0], owner.Name) {
		s.Errorf("the volume was expanded %d times, want once, on its node:\n%s", len(lines), strings.Join(lines, ""))
	}
}
