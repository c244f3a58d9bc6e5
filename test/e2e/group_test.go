//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// grouped labels a claim.
func grouped(group string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Labels = map[string]string{"group": group} }
}

// group creates a VolumeGroupSnapshot of the claims with its name as label. The end of the test deletes
// it, with its class.
func (s *space) group(name string) {
	s.Helper()
	class := s.ns + "-" + name
	client := lab.snapshots.GroupsnapshotV1()
	_, err := client.VolumeGroupSnapshotClasses().Create(ctx, &groupv1.VolumeGroupSnapshotClass{
		ObjectMeta: metav1.ObjectMeta{Name: class}, Driver: driverName, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
	}, metav1.CreateOptions{})
	s.no(err)
	_, err = client.VolumeGroupSnapshots(s.ns).Create(ctx, &groupv1.VolumeGroupSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: groupv1.VolumeGroupSnapshotSpec{
			VolumeGroupSnapshotClassName: &class,
			Source:                       groupv1.VolumeGroupSnapshotSource{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"group": name}}},
		},
	}, metav1.CreateOptions{})
	s.no(err)
	s.Cleanup(func() {
		err := client.VolumeGroupSnapshots(s.ns).Delete(ctx, name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			s.Error(err)
		}
		awaitGone(s.T, client.VolumeGroupSnapshots(s.ns), name, (*groupv1.VolumeGroupSnapshot)(nil))
		s.no(client.VolumeGroupSnapshotClasses().Delete(ctx, class, metav1.DeleteOptions{}))
	})
}

// members waits until a group is ready, and returns its VolumeSnapshots by the names of their claims.
func (s *space) members(group string) map[string]*snapshotv1.VolumeSnapshot {
	s.Helper()
	await(s.T, lab.snapshots.GroupsnapshotV1().VolumeGroupSnapshots(s.ns), group, "be ready to use", func(g *groupv1.VolumeGroupSnapshot) bool {
		return g.Status != nil && g.Status.ReadyToUse != nil && *g.Status.ReadyToUse
	})
	all, err := lab.snapshots.SnapshotV1().VolumeSnapshots(s.ns).List(ctx, metav1.ListOptions{})
	s.no(err)
	members := map[string]*snapshotv1.VolumeSnapshot{}
	for _, snapshot := range all.Items {
		members[*snapshot.Spec.Source.PersistentVolumeClaimName] = s.ready(snapshot.Name)
	}
	return members
}

// TestGroup takes two volumes at one instant, restores both, and deletes the group with its members.
func TestGroup(t *testing.T) {
	t.Parallel()
	s, node := newSpace(t), lab.Nodes[1]
	for _, name := range []string{"a", "b"} {
		s.claim(name, grouped("pair"))
		s.pod(name, on(node))
	}
	for _, name := range []string{"a", "b"} {
		s.running(name)
		s.sh(name, "echo before > /data/file; sync -d /data/file")
	}
	s.group("pair")
	members := s.members("pair")
	if len(members) != 2 || members["a"] == nil || members["b"] == nil {
		t.Fatalf("the members are of %v", members)
	}
	transactions, handles := map[string]bool{}, []string{}
	for _, snapshot := range members {
		content := s.content(snapshot.Name)
		if content.Labels["snapshot.storage.kubernetes.io/managed-by"] != node.Name || !strings.HasPrefix(*content.Status.SnapshotHandle, "groupsnapshot-") {
			t.Errorf("got the content %+v", content)
		}
		id := *content.Status.SnapshotHandle
		out := onNode(t, node, "btrfs subvolume show /var/lib/btrfs-csi/pools/default/committed/"+id+"/fs | grep 'Gen at creation'")
		transactions[out], handles = true, append(handles, id)
	}
	if len(transactions) != 1 {
		t.Errorf("the members are of several transactions: %v", transactions)
	}
	for _, name := range []string{"a", "b"} {
		s.sh(name, "echo after > /data/file")
		s.claim(name+"-restored", restoreOf(members[name].Name))
		s.pod(name + "-restored")
		s.running(name + "-restored")
		s.sh(name+"-restored", "grep -x before /data/file")
	}
	client := lab.snapshots.GroupsnapshotV1().VolumeGroupSnapshots(s.ns)
	s.no(client.Delete(ctx, "pair", metav1.DeleteOptions{}))
	awaitGone(t, client, "pair", (*groupv1.VolumeGroupSnapshot)(nil))
	for _, snapshot := range members {
		awaitGone(t, lab.snapshots.SnapshotV1().VolumeSnapshots(s.ns), snapshot.Name, (*snapshotv1.VolumeSnapshot)(nil))
	}
	eventually(t, "the snapshots are gone from the node", func() error {
		out := onNode(t, node, "ls /var/lib/btrfs-csi/pools/default/committed")
		for _, handle := range handles {
			if strings.Contains(out, handle) {
				return fmt.Errorf("%s is there", handle)
			}
		}
		return nil
	})
	for _, name := range []string{"a", "b"} {
		s.sh(name+"-restored", "grep -x before /data/file")
	}
	check(t, node)
}

// TestGroupOfTwoNodes asks for a group that cannot be one instant. Its status says which volume is where.
func TestGroupOfTwoNodes(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	for i, node := range lab.Nodes[:2] {
		name := fmt.Sprint("on-", i)
		s.claim(name, selected(node), grouped("apart"))
		s.bound(name)
	}
	s.group("apart")
	group := await(t, lab.snapshots.GroupsnapshotV1().VolumeGroupSnapshots(s.ns), "apart", "be refused", func(g *groupv1.VolumeGroupSnapshot) bool {
		return g.Status != nil && g.Status.Error != nil && strings.Contains(*g.Status.Error.Message, "one pool")
	})
	for _, node := range lab.Nodes[:2] {
		if message := *group.Status.Error.Message; !strings.Contains(message, fmt.Sprintf("%q", node.Name)) {
			t.Errorf("the node %s is missing from %q", node.Name, message)
		}
	}
	if snapshots, err := lab.snapshots.SnapshotV1().VolumeSnapshots(s.ns).List(ctx, metav1.ListOptions{}); err != nil || len(snapshots.Items) > 0 {
		t.Errorf("got the snapshots %v, %v", snapshots.Items, err)
	}
}
