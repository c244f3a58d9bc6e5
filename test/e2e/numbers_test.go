//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
)

const (
	samples = 30  // of operations one at a time
	crowd   = 100 // of operations at once
	pods    = 20  // fewer, because each takes more than a second
)

// These do parts of an operation.
const (
	byAPIServer          = "kube-apiserver"
	byManager            = "kube-controller-manager"
	byScheduler          = "kube-scheduler"
	byKubelet            = "kubelet and containerd, driver"
	byHoming             = "driver, by the claim"
	byProvisioner        = "csi-provisioner, driver"
	bySnapshotter        = "csi-snapshotter, driver"
	bySnapshotController = "snapshot-controller"
	byResizer            = "csi-resizer, driver"
)

var (
	provision = operation{
		name:  "PVC with a selected node to Bound",
		steps: []step{{claimSeen, byAPIServer}, {volumeMade, byProvisioner}, {claimBound, byManager}},
		rpcs:  []string{"CreateVolume"},
	}
	restore = operation{
		name:  "restore to Bound",
		steps: []step{{claimSeen, byAPIServer}, {nodeSelected, byHoming}, {volumeMade, byProvisioner}, {claimBound, byManager}},
		rpcs:  []string{"CreateVolume"},
	}
	takeSnapshot = operation{
		name:  "snapshot to ready",
		steps: []step{{snapshotSeen, byAPIServer}, {contentMade, bySnapshotController}, {contentReady, bySnapshotter}, {snapshotReady, bySnapshotController}},
		rpcs:  []string{"CreateSnapshot"},
	}
	expand = operation{
		name:  "expansion",
		steps: []step{{volumeGrown, byResizer}, {claimGrown, "csi-resizer"}},
		rpcs:  []string{"ControllerExpandVolume"},
	}
	deleteVolume = operation{
		name:  "PVC deleted to PV gone",
		steps: []step{{claimGone, byManager}, {volumeReleased, byManager}, {volumeGone, byProvisioner}},
		rpcs:  []string{"DeleteVolume"},
	}
	deleteSnapshot = operation{
		name:  "snapshot deleted to gone",
		steps: []step{{contentDeleted, bySnapshotController}, {contentGone, bySnapshotter}, {snapshotGone, bySnapshotController}},
		rpcs:  []string{"DeleteSnapshot"},
	}
	runWithVolume = operation{
		name:  "pod with a new PVC to Running",
		steps: []step{{nodeSelected, byScheduler}, {volumeMade, byProvisioner}, {claimBound, byManager}, {podScheduled, byScheduler}, {podRunning, byKubelet}},
		rpcs:  []string{"CreateVolume", "NodeStageVolume", "NodePublishVolume"},
	}
	runWithout = operation{
		name:  "pod without a volume to Running",
		steps: []step{{podScheduled, byScheduler}, {podRunning, "kubelet and containerd"}},
	}
)

// TestNumbers measures how long users wait, and for which component: from before a request is sent until the event
// of a watch has arrived. It prints the times. It fails only for an error, because times depend on the machine.
func TestNumbers(t *testing.T) {
	s := newSpace(t)
	n := &numbers{space: s, seen: newRecorder()}
	n.seen.watch(t, n.ns)
	for _, part := range []struct {
		name    string
		measure func()
	}{{"volumes", n.measureVolumes}, {"snapshots", n.measureSnapshots}, {"crowd", n.measureCrowd}, {"pods", n.measurePods}} {
		t.Run(part.name, func(t *testing.T) {
			n.space = n.in(t)
			part.measure()
		})
	}
	fmt.Print(n.text())
	if file := os.Getenv("E2E_NUMBERS"); file != "" {
		s.no(os.WriteFile(file, []byte(n.markdown()), 0o644))
	}
}

// measureVolumes measures operations on volumes of both nodes, one at a time.
func (n *numbers) measureVolumes() {
	of := map[*cluster.Node][]string{}
	for _, node := range lab.Nodes {
		of[node] = names("volume-"+node.Name, samples)
		n.oneByOne(provision.of("on "+node.Name), of[node], n.claimOn(node))
	}
	elected := n.resizer()
	for _, node := range lab.Nodes {
		where := "of a volume of another node than the resizer's"
		if node.Name == elected {
			where = "of a volume of the resizer's node"
		}
		n.oneByOne(expand.of(where), of[node], func(name string) { n.expand(name, grown) })
	}
	n.oneByOne(deleteVolume, of[lab.Nodes[0]], n.dropClaim)
}

// measureSnapshots measures snapshots and copies, whose cost does not depend on the size of the data.
func (n *numbers) measureSnapshots() {
	node := lab.Nodes[0]
	for _, data := range []struct{ name, size, bytes, command string }{
		{"small", "1 KiB", "1024", "dd if=/dev/urandom of=/data/file bs=1k count=1"},
		{"large", "1 GiB", "1073741824", "dd if=/dev/urandom of=/data/file bs=1M count=1024"},
	} {
		n.claim(data.name, size("2Gi"), selected(node))
		n.pod(data.name)
		n.running(data.name)
		n.sh(data.name, data.command+" && sync")
		if data.name == "large" {
			n.measureFloor(node, n.volume(data.name).Spec.CSI.VolumeHandle)
		}
		of := func(o operation) operation { return o.of("of " + data.size) }
		snapshots := names("snapshot-"+data.name, samples)
		n.oneByOne(of(takeSnapshot), snapshots, func(name string) { n.snapshot(name, data.name) })
		restores := names("restore-"+data.name, samples)
		n.oneByOne(of(restore), restores, func(name string) { n.claim(name, size("2Gi"), restoreOf(snapshots[0])) })
		n.pod(restores[0])
		n.running(restores[0])
		if got := strings.TrimSpace(n.sh(restores[0], "wc -c < /data/file")); got != data.bytes {
			n.Errorf("the restore contains a file of %s bytes, want %s", got, data.bytes)
		}
		clone := restore
		clone.name = "clone to Bound"
		n.oneByOne(of(clone), names("clone-"+data.name, samples), func(name string) {
			n.claim(name, size("2Gi"), cloneOf(data.name))
		})
		n.oneByOne(of(deleteSnapshot), snapshots, n.dropSnapshot)
	}
}

// measureCrowd measures many operations at once.
func (n *numbers) measureCrowd() {
	node := lab.Nodes[0]
	n.rest()
	n.atOnce(provision.of("on "+node.Name), names("crowd-"+node.Name, crowd), n.claimOn(node))
	all := names("crowd", crowd)
	n.atOnce(provision.of("on either node"), all, func(name string) {
		n.claimOn(lab.Nodes[int(name[len(name)-1])%len(lab.Nodes)])(name)
	})
	n.atOnce(takeSnapshot, all, func(name string) { n.snapshot(name, name) })
	n.atOnce(expand, all, func(name string) { n.expand(name, grown) })
	n.atOnce(deleteSnapshot, all, n.dropSnapshot)
	n.atOnce(deleteVolume, all, n.dropClaim)
}

// measurePods measures pods with a volume and without, in turns.
func (n *numbers) measurePods() {
	with, without := names("pod-with", pods), names("pod-without", pods)
	for i := range pods {
		n.oneByOne(runWithout, without[i:i+1], func(name string) { n.pod(name, noVolume) })
		n.oneByOne(runWithVolume, with[i:i+1], func(name string) {
			n.claim(name)
			n.pod(name)
		})
	}
}

// measureFloor measures btrfs alone, in the pool of a node and on a volume in it. No driver can be faster.
func (n *numbers) measureFloor(node *cluster.Node, volume string) {
	pool := filepath.Join(filepath.Dir(lab.Kubeconfig()), node.Name, "disk/btrfs-csi/pools/default")
	dir, err := os.MkdirTemp(pool, "numbers-")
	n.no(err)
	defer os.Remove(dir)
	durably := func(err error) error {
		if err == nil {
			err = btrfs.Sync(dir)
		}
		return err
	}
	source := filepath.Join(pool, "active", volume, "fs")
	for _, f := range []struct {
		name string
		do   func(path string) error
	}{
		{"create a subvolume, fsync", func(path string) error { return durably(btrfs.Create(path)) }},
		{"delete it, fsync", func(path string) error { return durably(btrfs.Destroy(path)) }},
		{"snapshot of 1 GiB", func(path string) error { return btrfs.Snapshot(path, source, true) }},
		{"delete that, fsync", func(path string) error { return durably(btrfs.Destroy(path)) }},
	} {
		var took []time.Duration
		for _, name := range names("floor", samples) {
			began := time.Now()
			n.no(f.do(filepath.Join(dir, name)))
			took = append(took, time.Since(began))
		}
		n.floor = append(n.floor, line{f.name, took})
	}
}

// names returns count names.
func names(prefix string, count int) []string {
	all := make([]string, count)
	for i := range all {
		all[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	return all
}

func (n *numbers) claimOn(node *cluster.Node) func(string) {
	return func(name string) { n.claim(name, selected(node)) }
}

func (n *numbers) dropClaim(name string) {
	n.no(api().CoreV1().PersistentVolumeClaims(n.ns).Delete(ctx, name, metav1.DeleteOptions{}))
}

func (n *numbers) dropSnapshot(name string) {
	n.no(lab.snapshots.SnapshotV1().VolumeSnapshots(n.ns).Delete(ctx, name, metav1.DeleteOptions{}))
}

func noVolume(p *corev1.Pod) { p.Spec.Volumes, p.Spec.Containers[0].VolumeMounts = nil, nil }

// resizer returns the node with the elected csi-resizer.
func (n *numbers) resizer() string {
	n.Helper()
	lease := await(n.T, api().CoordinationV1().Leases(driverNamespace), "external-resizer-btrfs-csi-github-io", "be held", func(l *coordinationv1.Lease) bool {
		return l.Spec.HolderIdentity != nil && *l.Spec.HolderIdentity != ""
	})
	holder, err := api().CoreV1().Pods(driverNamespace).Get(ctx, *lease.Spec.HolderIdentity, metav1.GetOptions{})
	n.no(err)
	return holder.Spec.NodeName
}

// grown is the size to which the test expands volumes.
const grown = "128Mi"

// These are milestones of an object, or of an object that belongs to it.
const (
	claimSeen      = "PVC is there"
	nodeSelected   = "node is selected"
	volumeMade     = "PV is there"
	claimBound     = "PVC is Bound"
	volumeGrown    = "PV is larger"
	claimGrown     = "PVC is larger"
	claimGone      = "PVC is gone"
	volumeReleased = "PV is Released"
	volumeGone     = "PV is gone"
	podScheduled   = "pod is scheduled"
	podRunning     = "pod is Running"
	snapshotSeen   = "snapshot is there"
	contentMade    = "content is there"
	contentReady   = "content is ready"
	snapshotReady  = "snapshot is ready"
	contentDeleted = "content is to be deleted"
	snapshotGone   = "snapshot is gone"
	contentGone    = "content is gone"
)

// claimMilestones returns the milestones that a claim has reached; the others are for other kinds.
func claimMilestones(c *corev1.PersistentVolumeClaim) (string, map[string]bool) {
	return c.Name, map[string]bool{
		claimSeen:    true,
		nodeSelected: c.Annotations["volume.kubernetes.io/selected-node"] != "",
		claimBound:   c.Status.Phase == corev1.ClaimBound,
		claimGrown:   c.Status.Capacity.Storage().String() == grown,
	}
}

func volumeMilestones(v *corev1.PersistentVolume) (string, map[string]bool) {
	if v.Spec.ClaimRef == nil {
		return "", map[string]bool{}
	}
	return v.Spec.ClaimRef.Name, map[string]bool{
		volumeMade:     true,
		volumeGrown:    v.Spec.Capacity.Storage().String() == grown,
		volumeReleased: v.Status.Phase == corev1.VolumeReleased,
	}
}

func podMilestones(p *corev1.Pod) (string, map[string]bool) {
	return p.Name, map[string]bool{podScheduled: p.Spec.NodeName != "", podRunning: p.Status.Phase == corev1.PodRunning}
}

func snapshotMilestones(s *snapshotv1.VolumeSnapshot) (string, map[string]bool) {
	return s.Name, map[string]bool{
		snapshotSeen:  true,
		snapshotReady: s.Status != nil && s.Status.ReadyToUse != nil && *s.Status.ReadyToUse,
	}
}

func contentMilestones(c *snapshotv1.VolumeSnapshotContent) (string, map[string]bool) {
	return c.Spec.VolumeSnapshotRef.Name, map[string]bool{
		contentMade:    true,
		contentReady:   c.Status != nil && c.Status.ReadyToUse != nil && *c.Status.ReadyToUse,
		contentDeleted: c.DeletionTimestamp != nil,
	}
}
