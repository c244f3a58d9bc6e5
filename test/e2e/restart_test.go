//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
)

// writing makes a pod append a line to /data/log ten times per second, each synced, and end at the first
// error.
func writing(p *corev1.Pod) {
	p.Spec.RestartPolicy = corev1.RestartPolicyNever
	p.Spec.Containers[0].Command = []string{"sh", "-ec", "trap exit TERM; while true; do date >> /data/log; sync -d /data/log; sleep 0.1; done"}
}

// wrote returns the number of lines in the log, read on the node.
func wrote(t *testing.T, node *cluster.Node, v *corev1.PersistentVolume) int64 {
	t.Helper()
	return parse(t, onNode(t, node, "wc -l < /var/lib/btrfs-csi/pools/default/active/"+v.Spec.CSI.VolumeHandle+"/fs/log"))
}

// goesOn waits until the pod has written more.
func goesOn(t *testing.T, node *cluster.Node, v *corev1.PersistentVolume) {
	t.Helper()
	before := wrote(t, node, v)
	eventually(t, "the pod goes on writing", func() error {
		if now := wrote(t, node, v); now <= before+2 {
			return fmt.Errorf("%d lines, %d before", now, before)
		}
		return nil
	})
}

// TestRestart ends everything that serves a volume while a pod writes to it. The pod must not notice.
func TestRestart(t *testing.T) { eachNode(t, testRestart) }

func testRestart(t *testing.T, node *cluster.Node) {
	s := newSpace(t)
	s.claim("data", size("1Gi"))
	s.pod("data", on(node), writing)
	before := s.running("data")
	volume := s.volume("data")
	for _, c := range []struct {
		what string
		do   func(*testing.T)
	}{
		{"driver process killed", func(t *testing.T) { killDriver(t, node) }},
		{"driver pod deleted", func(t *testing.T) {
			pod := driverReady(t, node)
			if err := api().CoreV1().Pods(driverNamespace).Delete(ctx, pod.Name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			awaitGone(t, api().CoreV1().Pods(driverNamespace), pod.Name, pod)
			goesOn(t, node, volume) // the driver is down, or starts
		}},
		{"kubelet restarted", func(t *testing.T) {
			if err := node.RestartKubelet(t.Context()); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := s.in(t)
			c.do(t)
			goesOn(t, node, volume)
			driverReady(t, node)
			now := s.running("data")
			if now.UID != before.UID || now.Status.ContainerStatuses[0].RestartCount != 0 {
				t.Errorf("the pod was started again: %+v", now.Status)
			}
			// The driver serves again.
			name := strings.ReplaceAll(c.what, " ", "-")
			s.claim(name)
			s.pod(name, on(node))
			s.running(name)
			s.deletePod(name)
		})
	}
	check(t, node)
}

// TestPowerCut cuts the power of one node after the other. All synced data must survive.
func TestPowerCut(t *testing.T) {
	for _, node := range lab.Nodes {
		t.Run(node.Name, func(t *testing.T) { testPowerCut(t, node) })
	}
}

func testPowerCut(t *testing.T, node *cluster.Node) {
	s := newSpace(t)
	for _, name := range []string{"data", "other"} {
		s.claim(name)
		s.pod(name, on(node), func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyAlways })
	}
	s.running("data")
	s.running("other")
	s.snapshot("snapshot", "other")
	s.ready("snapshot")
	s.sh("data", "echo synced > /data/file; sync")

	if err := node.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	driverReady(t, node)
	await(t, api().CoreV1().Pods(s.ns), "data", "run again", func(p *corev1.Pod) bool {
		return isReady(p) && p.Status.ContainerStatuses[0].RestartCount > 0
	})
	s.sh("data", "grep -x synced /data/file")
	testSize(s, "data", 64)
	for _, claim := range []string{"data", "other"} {
		testVolume(t, node, s.volume(claim))
	}
	if i := find(t, node, *s.content("snapshot").Status.SnapshotHandle); i == nil || i.Status != "Ready" {
		t.Errorf("of the snapshot there is %+v", i)
	}
	check(t, node)
}

// TestDriverKilledAtWork kills the drivers of both nodes during many creations and deletions. All must be
// completed, and nothing else may be left.
func TestDriverKilledAtWork(t *testing.T) {
	s := newSpace(t)
	const each = 12
	var kept, dropped []string // on each node
	for n := range each {
		for _, node := range lab.Nodes {
			keep, drop := fmt.Sprintf("%s-keep-%d", node.Name, n), fmt.Sprintf("%s-drop-%d", node.Name, n)
			s.claim(keep, selected(node))
			s.claim(drop, selected(node))
			kept, dropped = append(kept, keep), append(dropped, drop)
		}
	}
	for _, name := range append(kept, dropped...) {
		s.bound(name)
	}
	for n := range each {
		s.snapshot(fmt.Sprintf("drop-%d", n), dropped[n])
	}
	for n := range each {
		s.ready(fmt.Sprintf("drop-%d", n))
	}

	// Volumes, restores and snapshots are created at once, and others deleted.
	var made []string
	for n := range each {
		for _, node := range lab.Nodes {
			name := fmt.Sprintf("%s-new-%d", node.Name, n)
			s.claim(name, selected(node))
			made = append(made, name)
		}
		snapshot := fmt.Sprintf("new-%d", n)
		s.snapshot(snapshot, kept[n])
		s.claim("restored-"+snapshot, restoreOf(snapshot))
		made = append(made, "restored-"+snapshot)
		s.no(api().CoreV1().PersistentVolumeClaims(s.ns).Delete(ctx, dropped[n], metav1.DeleteOptions{}))
		s.no(lab.snapshots.SnapshotV1().VolumeSnapshots(s.ns).Delete(ctx, fmt.Sprintf("drop-%d", n), metav1.DeleteOptions{}))
		if n == each/2 {
			s.inTheMiddle(made)
		}
	}
	for _, name := range made {
		s.bound(name)
	}
	for n := range each {
		s.ready(fmt.Sprintf("new-%d", n))
	}
	for _, node := range lab.Nodes {
		driverReady(t, node)
	}
	eventually(t, "what was deleted is gone, and what was made is all that is there", s.compare)
	for _, node := range lab.Nodes {
		check(t, node)
	}

	// Kill them once more during the deletion of all. The end of the test checks that nothing is left.
	first := s.volume(made[0])
	s.deleteAll()
	awaitGone(t, api().CoreV1().PersistentVolumes(), first.Name, first)
	left, err := s.left()
	s.no(err)
	for _, node := range lab.Nodes {
		killDriver(t, node)
	}
	t.Logf("the drivers were killed when there was this left: %d objects", len(left))
}

// inTheMiddle kills the drivers once some of the claims are bound, and others not.
func (s *space) inTheMiddle(made []string) {
	s.Helper()
	bound := 0
	for _, name := range made {
		claim, err := api().CoreV1().PersistentVolumeClaims(s.ns).Get(ctx, name, metav1.GetOptions{})
		s.no(err)
		if claim.Status.Phase == corev1.ClaimBound {
			bound++
		}
	}
	for _, node := range lab.Nodes {
		killDriver(s.T, node)
	}
	s.Logf("the drivers were killed when %d of %d claims were bound", bound, len(made))
}

// compare compares all PersistentVolumes and contents of a namespace with the disk.
func (s *space) compare() error {
	want := map[string]string{}
	volumes, err := api().CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, v := range volumes.Items {
		if v.Spec.ClaimRef.Namespace == s.ns {
			want[v.Spec.CSI.VolumeHandle] = string("PersistentVolume " + v.Status.Phase)
		}
	}
	contents, err := lab.snapshots.SnapshotV1().VolumeSnapshotContents().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, c := range contents.Items {
		if c.Spec.VolumeSnapshotRef.Namespace == s.ns && c.Status != nil && c.Status.SnapshotHandle != nil {
			want[*c.Status.SnapshotHandle] = "VolumeSnapshotContent Bound"
		}
	}
	for _, node := range lab.Nodes {
		items, err := inventory(node)
		if err != nil {
			return err
		}
		for _, i := range items {
			if i.namespace() != s.ns {
				continue
			}
			if !strings.HasSuffix(want[i.ID], " Bound") || i.Status != "Ready" {
				return fmt.Errorf("on %s there is %s, %s, for %q", node.Name, i.ID, i.Status, want[i.ID])
			}
			delete(want, i.ID)
		}
	}
	if len(want) > 0 {
		return fmt.Errorf("on no node there is what stands for %v", want)
	}
	return nil
}
