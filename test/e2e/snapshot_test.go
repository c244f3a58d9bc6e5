//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
)

// digest prints all of a volume: names, owners, modes and contents.
func (s *space) digest(pod string) string {
	s.Helper()
	return s.sh(pod, "cd /data && find . ! -name . | sort | while read f; do stat -c '%N %F %a %u %g %s' $f; if test -f $f; then md5sum < $f; fi; done")
}

// TestRestore restores a snapshot to volumes of several sizes.
func TestRestore(t *testing.T) {
	t.Parallel()
	s, node := newSpace(t), lab.Nodes[1]
	s.claim("data", size("64Mi"))
	s.pod("data", on(node))
	s.running("data")
	s.sh("data", `cd /data; head -c 20000000 /dev/urandom > random; echo before > file; chmod 4751 file; chown 12:34 file
		ln -s file link; mkdir -p dir/dir; echo gone > dir/dir/gone`)
	then := s.digest("data")
	s.snapshot("snapshot", "data")
	s.ready("snapshot")
	s.sh("data", "cd /data; echo after > file; rm -r dir; echo new > new; echo more >> random; chmod 600 file")
	now := s.digest("data")
	for name, mib := range map[string]int{"same": 64, "larger": 128} {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			s.claim(name, size(fmt.Sprintf("%dMi", mib)), restoreOf("snapshot"))
			s.pod(name)
			if pod := s.running(name); pod.Spec.NodeName != node.Name {
				t.Errorf("the pod runs on %s, the snapshot is on %s", pod.Spec.NodeName, node.Name)
			}
			if have := s.digest(name); have != then {
				t.Errorf("restored is\n%s\nwant, as it was,\n%s", have, then)
			}
			testVolume(t, node, s.volume(name))
			s.sh(name, "rm -r /data/*; sync /data")
			testSize(s, name, mib)
			if have := s.digest("data"); have != now {
				t.Errorf("the source has changed with it, to\n%s\nfrom\n%s", have, now)
			}
		})
	}
	t.Run("smaller", func(t *testing.T) {
		s := s.in(t)
		s.claim("smaller", size("32Mi"), restoreOf("snapshot"))
		s.pod("smaller")
		s.event("PersistentVolumeClaim", "smaller", "ProvisioningFailed", "33554432", "less than", "67108864")
		claim, err := api().CoreV1().PersistentVolumeClaims(s.ns).Get(ctx, "smaller", metav1.GetOptions{})
		if err != nil || claim.Status.Phase != corev1.ClaimPending {
			t.Errorf("the claim is %s (%v), want that it is pending", claim.Status.Phase, err)
		}
	})
	check(t, node)
}

// counting makes a pod write the numbers from 1 on to /data/log, and sync each before the next.
func counting(p *corev1.Pod) {
	p.Spec.Containers[0].Command = []string{"sh", "-ec", "trap exit TERM; i=0; while true; do i=$((i+1)); echo $i >> /data/log; sync -d /data/log; done"}
}

// TestCopiesOfTheMoment creates a snapshot and a clone while a pod writes. Each must contain the data of one
// moment between the request and the answer.
func TestCopiesOfTheMoment(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.claim("data")
	s.pod("data", on(lab.Nodes[0]), counting)
	s.running("data")
	count := func(pod string) int64 { return parse(t, s.sh(pod, "wc -l < /data/log")) }
	eventually(t, "the pod writes", func() error {
		if n := count("data"); n < 3 {
			return fmt.Errorf("%d lines", n)
		}
		return nil
	})
	for _, c := range []struct {
		name string
		make func() // returns when the copy is done
	}{
		{"snapshot", func() { s.snapshot("snapshot", "data"); s.ready("snapshot") }},
		{"clone", func() { s.claim("clone", cloneOf("data")); s.bound("clone") }},
	} {
		before := count("data")
		c.make()
		after := count("data")
		if c.name == "snapshot" {
			s.claim("snapshot", restoreOf("snapshot"))
		}
		s.pod(c.name)
		s.running(c.name)
		have := count(c.name)
		t.Logf("%s: %d lines before, %d in it, %d after", c.name, before, have, after)
		if have < before || have > after {
			t.Errorf("the %s has %d lines; the volume had %d before and %d after", c.name, have, before, after)
		}
		s.sh(c.name, "awk '$1 != NR { exit 1 }' /data/log; echo its own > /data/file")
	}
	s.sh("data", "! test -e /data/file")
}

// family is a volume and its copies.
var family = []string{"volume", "snapshot", "restore", "clone"}

// TestDeleteInEveryOrder deletes the members of a family in each possible order. The others must keep their
// contents.
func TestDeleteInEveryOrder(t *testing.T) {
	t.Parallel()
	s, node := newSpace(t), lab.Nodes[1]
	orders := permutations(family)
	name := func(order []string, member string) string { return strings.Join(order, "-") + "." + member }
	for _, order := range orders {
		s.claim(name(order, "volume"), selected(node))
	}
	var script strings.Builder
	for _, order := range orders {
		volume := name(order, "volume")
		fmt.Fprintf(&script, "echo content of %s > %s/content\n", volume, s.pathOf("volume", volume))
	}
	onNode(t, node, script.String())
	for _, order := range orders {
		s.snapshot(name(order, "snapshot"), name(order, "volume"))
		s.claim(name(order, "restore"), restoreOf(name(order, "snapshot")))
		s.claim(name(order, "clone"), cloneOf(name(order, "volume")))
	}
	t.Run("orders", func(t *testing.T) {
		for _, order := range orders {
			t.Run(strings.Join(order, " "), func(t *testing.T) {
				t.Parallel()
				s.in(t).deleteInOrder(node, order, func(member string) string { return name(order, member) })
			})
		}
	})
	check(t, node)
}

func (s *space) deleteInOrder(node *cluster.Node, order []string, name func(string) string) {
	paths := map[string]string{}
	for _, member := range order {
		paths[member] = s.pathOf(member, name(member))
	}
	for i, member := range order {
		s.deleteMember(member, name(member))
		var script strings.Builder
		for _, gone := range order[:i+1] {
			fmt.Fprintf(&script, "! test -e %s || { echo the %s is still there; exit 1; }\n", paths[gone], gone)
		}
		for _, left := range order[i+1:] {
			fmt.Fprintf(&script, "grep -qx 'content of %s' %s/content || { echo the %s has lost its content; exit 1; }\n", name("volume"), paths[left], left)
		}
		if out, err := node.Exec(ctx, "sh", "-c", script.String()); err != nil {
			s.Fatalf("after the %s was deleted: %s (%v)", member, out, err)
		}
	}
}

// deleteMember deletes a claim or snapshot and waits until its subvolume is gone.
func (s *space) deleteMember(member, name string) {
	s.Helper()
	if member == "snapshot" {
		content := s.content(name)
		s.deleteSnapshot(name)
		awaitGone(s.T, lab.snapshots.SnapshotV1().VolumeSnapshotContents(), content.Name, (*snapshotv1.VolumeSnapshotContent)(nil))
		return
	}
	volume := s.volume(name)
	s.deleteClaim(name)
	awaitGone(s.T, api().CoreV1().PersistentVolumes(), volume.Name, volume)
}

// pathOf waits for a volume or snapshot and returns its directory on its node.
func (s *space) pathOf(member, name string) string {
	s.Helper()
	if member == "snapshot" {
		return "/var/lib/btrfs-csi/pools/default/committed/" + *s.content(name).Status.SnapshotHandle + "/fs"
	}
	return "/var/lib/btrfs-csi/pools/default/active/" + s.volume(name).Spec.CSI.VolumeHandle + "/fs"
}

func permutations(of []string) (all [][]string) {
	if len(of) == 0 {
		return [][]string{nil}
	}
	for i, first := range of {
		rest := slices.Delete(slices.Clone(of), i, i+1)
		for _, p := range permutations(rest) {
			all = append(all, append([]string{first}, p...))
		}
	}
	return all
}
