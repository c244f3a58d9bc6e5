//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
)

// newClass creates a StorageClass, as the chart does, until the test ends.
func newClass(t *testing.T, parameters map[string]string, options ...func(*storagev1.StorageClass)) string {
	t.Helper()
	mode, expand := storagev1.VolumeBindingWaitForFirstConsumer, true
	class := &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{GenerateName: "e2e-"},
		Provisioner: driverName, Parameters: parameters, VolumeBindingMode: &mode, AllowVolumeExpansion: &expand,
	}
	for _, option := range options {
		option(class)
	}
	class, err := api().StorageV1().StorageClasses().Create(ctx, class, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := api().StorageV1().StorageClasses().Delete(ctx, class.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	return class.Name
}

func immediate(c *storagev1.StorageClass) {
	mode := storagev1.VolumeBindingImmediate
	c.VolumeBindingMode = &mode
}

// drive is a disk of a test, which is a pool of one node at a time.
type drive struct {
	*testing.T
	disk *cluster.Disk
	name string // of the pool
	id   string
	node *cluster.Node // nil while no node has it
}

// newDrive adds a disk to a node as a pool, until the test ends. Call it before newSpace, so that its
// volumes are deleted first.
func newDrive(t *testing.T, node *cluster.Node, name string, size int64) *drive {
	t.Helper()
	disk, err := lab.NewDisk(ctx, size)
	if err != nil {
		t.Fatal(err)
	}
	d := &drive{T: t, disk: disk, name: name}
	t.Cleanup(d.remove)
	d.attach(node)
	eventually(t, "the driver has made pool "+name, func() error {
		_, err := node.Exec(ctx, "test", "-s", d.dir()+"/pool.json")
		return err
	})
	d.id = poolID(t, node, name)
	return d
}

func (d *drive) dir() string { return "/var/lib/btrfs-csi/pools/" + d.name }

// attach mounts the disk. It does not wait until the driver uses it.
func (d *drive) attach(node *cluster.Node) {
	d.Helper()
	if err := node.AddPool(ctx, d.name, d.disk); err != nil {
		d.Fatal(err)
	}
	d.node = node
}

// detach unmounts the disk, as root on the node does.
func (d *drive) detach() {
	d.Helper()
	if _, err := d.node.RemovePool(ctx, d.name); err != nil {
		d.Fatal(err)
	}
	onNode(d.T, d.node, "rmdir "+d.dir())
	d.node = nil
}

// remove removes the pool from the node and from the cluster.
func (d *drive) remove() {
	if d.node != nil {
		d.detach()
	}
	if d.id == "" {
		return
	}
	d.released()
	if err := lab.pools.Delete(ctx, d.id, metav1.DeleteOptions{}); err != nil {
		d.Error(err)
	}
}

// served waits until the Pool is Ready on a node.
func (d *drive) served(node *cluster.Node) {
	d.Helper()
	await(d.T, lab.pools, d.id, "be Ready on "+node.Name, func(p *v1alpha1.Pool) bool {
		return p.Spec.NodeName == node.Name && p.Spec.Pool == d.name && p.Status.State == "Ready"
	})
	await(d.T, api().StorageV1().CSINodes(), node.Name, "have the topology key of pool "+d.name, d.hasKey)
	await(d.T, api().CoreV1().Nodes(), node.Name, "have the label of pool "+d.name, d.hasLabel)
}

// released waits until the Pool has no owner.
func (d *drive) released() {
	d.Helper()
	await(d.T, lab.pools, d.id, "be Away", func(p *v1alpha1.Pool) bool {
		return p.Spec.NodeName == "" && p.Status.State == "Away"
	})
	for _, node := range lab.Nodes {
		d.unlabelled(node)
	}
}

// unlabelled waits until a node has no topology label of the pool.
func (d *drive) unlabelled(node *cluster.Node) {
	d.Helper()
	await(d.T, api().StorageV1().CSINodes(), node.Name, "have no topology key of pool "+d.name, func(n *storagev1.CSINode) bool {
		return !d.hasKey(n)
	})
	await(d.T, api().CoreV1().Nodes(), node.Name, "have no label of pool "+d.name, func(n *corev1.Node) bool {
		return !d.hasLabel(n)
	})
}

func (d *drive) hasKey(n *storagev1.CSINode) bool {
	return slices.ContainsFunc(n.Spec.Drivers, func(driver storagev1.CSINodeDriver) bool {
		return driver.Name == driverName && slices.Contains(driver.TopologyKeys, topologyPrefix+d.id)
	})
}

func (d *drive) hasLabel(n *corev1.Node) bool { return n.Labels[topologyPrefix+d.id] == "true" }

// poolOf returns the name of the pool of a claim's volume, on a node.
func (s *space) poolOf(claim string, node *cluster.Node) string {
	s.Helper()
	i := find(s.T, node, s.volume(claim).Spec.CSI.VolumeHandle)
	if i == nil {
		s.Fatalf("the volume of claim %s is not on %s", claim, node.Name)
	}
	return i.Pool
}

// ran waits until a pod runs, and fails unless it runs on the given node.
func (s *space) ran(pod string, node *cluster.Node) {
	s.Helper()
	if now := s.running(pod).Spec.NodeName; now != node.Name {
		s.Errorf("pod %s runs on %s, it has to be on %s", pod, now, node.Name)
	}
}

// clear deletes a claim that no pod uses, and waits until its volume is gone.
func (s *space) clear(claim string) {
	s.Helper()
	v := s.volume(claim)
	s.deleteClaim(claim)
	awaitGone(s.T, api().CoreV1().PersistentVolumes(), v.Name, v)
	awaitGone(s.T, lab.subvolumes, v.Spec.CSI.VolumeHandle, (*v1alpha1.Subvolume)(nil))
}

// events returns the messages of the Events on an object with a reason.
func (s *space) events(kind, name, reason string) (messages []string) {
	s.Helper()
	list, err := api().CoreV1().Events(s.ns).List(ctx, metav1.ListOptions{
		FieldSelector: "involvedObject.kind=" + kind + ",involvedObject.name=" + name + ",reason=" + reason,
	})
	s.no(err)
	for _, e := range list.Items {
		messages = append(messages, e.Message)
	}
	return messages
}

// A disk that is mounted while the driver runs becomes a pool, which classes can name. When it is unmounted
// the pool is away. If it does not come back, prune deletes its objects.
func TestPoolComesAndGoes(t *testing.T) {
	home := lab.Nodes[0]
	began := time.Now()
	fast := newDrive(t, home, "fast", 2*gib)
	fast.served(home)
	t.Logf("pool served %.1f s after the disk was made", time.Since(began).Seconds())
	s := newSpace(t)
	s.claim("fast", ofClass(newClass(t, map[string]string{"pool": "fast"})))
	s.claim("default")
	s.pod("both", using("fast"), func(p *corev1.Pod) {
		v := *p.Spec.Volumes[0].DeepCopy()
		v.Name, v.PersistentVolumeClaim.ClaimName = "other", "default"
		p.Spec.Volumes = append(p.Spec.Volumes, v)
		p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: "other", MountPath: "/other"})
	})
	s.ran("both", home)
	t.Logf("pod runs %.1f s after the disk was made", time.Since(began).Seconds())
	s.sh("both", "echo hello > /data/file && cp /data/file /other")
	for _, pool := range []string{"fast", "default"} {
		if is := s.poolOf(pool, home); is != pool {
			t.Errorf("the volume of claim %s is in pool %s", pool, is)
		}
	}
	s.deletePod("both")
	s.snapshot("fast", "fast")
	s.content("fast")
	program := driverProgram(t, home)
	if out, err := runTool(program, "prune", "--pool-id", fast.id); err == nil || !strings.Contains(err.Error(), "unmount it there first") {
		t.Errorf("prune of a pool that is served: %v %s", err, out)
	}
	fast.detach()
	fast.released()
	s.lose(program, fast, "fast")
}

// Volumes and snapshots move with their disk.
func TestPoolMoves(t *testing.T) {
	from, to := lab.Nodes[0], lab.Nodes[1]
	disk := newDrive(t, from, "mobile", 2*gib)
	disk.served(from)
	s := newSpace(t)
	s.claim("data", ofClass(newClass(t, map[string]string{"pool": "mobile"})))
	s.pod("data")
	s.ran("data", from)
	s.sh("data", "echo old > /data/file")
	s.snapshot("snap", "data")
	handle := s.volume("data").Spec.CSI.VolumeHandle
	content := s.content("snap")
	s.sh("data", "echo new > /data/file")
	s.deletePod("data")

	disk.detach()
	disk.released()
	s.pod("data")
	s.event("Pod", "data", "FailedScheduling", "node affinity")
	disk.name = "moved"
	disk.attach(to)
	disk.served(to)
	s.ran("data", to)
	contains(t, "on the other node", s.sh("data", "cat /data/file"), "new")
	await(t, lab.subvolumes, handle, "be on "+to.Name, func(v *v1alpha1.Subvolume) bool {
		return v.Spec.NodeName == to.Name && v.Spec.Pool == "moved"
	})
	s.claim("restored", restoreOf("snap"))
	s.pod("restored")
	s.ran("restored", to)
	contains(t, "the snapshot has", s.sh("restored", "cat /data/file"), "old")
	s.expand("data", "128Mi")
	s.expanded("data", "128Mi")
	s.deleteSnapshot("snap")
	awaitGone(t, lab.snapshots.SnapshotV1().VolumeSnapshotContents(), content.Name, content)
	if left := find(t, to, *content.Status.SnapshotHandle); left != nil {
		t.Errorf("the snapshot was deleted, on disk is still %+v", left)
	}
}

// The volumes on a copy of a disk must not be served a second time.
func TestOwnershipConflict(t *testing.T) {
	first, second := lab.Nodes[0], lab.Nodes[1]
	original := newDrive(t, first, "twin", gib)
	original.served(first)
	s := newSpace(t)
	s.claim("data", ofClass(newClass(t, map[string]string{"pool": "twin"})))
	s.pod("data")
	s.ran("data", first)
	s.sh("data", "echo hello > /data/file && sync")
	image, err := lab.CopyDisk(ctx, original.disk)
	s.no(err)
	twin := &drive{T: t, disk: image, name: "twin", id: original.id}
	defer func() {
		if twin.node != nil {
			twin.detach()
		}
	}()
	twin.attach(second)

	awaitEvent(t, "default", "Pool", twin.id, "OwnershipConflict", second.Name, first.Name)
	eventually(t, "pools on the second node says why", func() error { return refusedPool(second, "twin", first.Name) })
	twin.unlabelled(second)
	s.sh("data", "echo again >> /data/file")
	s.deletePod("data")
	s.pod("data")
	s.ran("data", first)
	s.deletePod("data")

	original.detach()
	twin.served(second)
	s.pod("data")
	s.ran("data", second)
	contains(t, "the copy has", s.sh("data", "cat /data/file"), "hello")
	s.deletePod("data")
	s.clear("data")
}

// refusedPool fails unless `btrfs-csi pools` on a node says, with a word, why it refuses a pool.
func refusedPool(node *cluster.Node, pool, word string) error {
	out, err := inDriver(node, "btrfs-csi", "pools", "-o", "json")
	if err != nil {
		return err
	}
	var pools []struct{ Name, Status, Error string }
	if err := json.Unmarshal([]byte(out), &pools); err != nil {
		return err
	}
	for _, p := range pools {
		if p.Name == pool && p.Status == "Unusable" && strings.Contains(p.Error, word) {
			return nil
		}
	}
	return fmt.Errorf("it says %+v", pools)
}
