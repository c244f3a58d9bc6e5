//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
)

// upgrade upgrades the release, or installs it again, with the values of the tests and further arguments. It
// waits until the driver is ready with them.
func upgrade(t *testing.T, values ...string) {
	t.Helper()
	upgradeTo(t, lab.chart, values...)
}

// upgradeTo is upgrade with another chart.
func upgradeTo(t *testing.T, chart string, values ...string) {
	t.Helper()
	helm(t, slices.Concat([]string{"upgrade", "--install", release, chart, "--create-namespace", "--wait", "--timeout", "2m"}, lab.values, values)...)
	driversReady(t)
}

func driversReady(t *testing.T) {
	t.Helper()
	for _, node := range lab.Nodes {
		driverReady(t, node)
	}
}

// ignoreGone returns err, nil if that is "not found".
func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// writer creates a claim, and a pod on a node that writes numbers to it, reads them, and ends at the first
// error.
func (s *space) writer(name string, node *cluster.Node) {
	s.Helper()
	s.claim(name)
	s.pod(name, on(node), func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.Containers[0].Command = []string{"sh", "-euc", `
			trap exit TERM
			n=0
			while true; do
				n=$((n+1))
				echo $n >> /data/log
				test $n = "$(tail -n 1 /data/log)"
				sleep 0.05
			done`}
	})
	s.running(name)
}

// writes waits until a writer has written more, and returns how much. It fails if the writer ever failed.
func (s *space) writes(name string) int {
	s.Helper()
	lines := func() int {
		n, err := strconv.Atoi(strings.TrimSpace(s.sh(name, "wc -l < /data/log")))
		s.no(err)
		return n
	}
	before, now := lines(), 0
	eventually(s.T, "pod "+name+" writes", func() error {
		if now = lines(); now <= before {
			return fmt.Errorf("it had %d lines, and has %d", before, now)
		}
		return nil
	})
	s.sh(name, "awk 'NR != $1 {print; exit 1}' /data/log") // no number is missing
	pod, err := api().CoreV1().Pods(s.ns).Get(ctx, name, metav1.GetOptions{})
	if s.no(err); !isReady(pod) || pod.Status.ContainerStatuses[0].RestartCount > 0 {
		s.Errorf("pod %s has failed to write:\n%s", name, describe(pod))
	}
	return now
}

// previously installs the previous chart with the present driver.
func previously(t *testing.T) {
	t.Helper()
	if out, err := runTool("diff", "-rq", lab.previous, lab.chart); err == nil {
		t.Log("the previous chart is the present one: the upgrade changes values alone")
	} else {
		t.Logf("the previous chart is another:\n%s", out)
	}
	upgradeTo(t, lab.previous)
}

// Upgrade from the previous chart, kill the driver, uninstall the chart and install it again, while pods
// write.
func TestUpgrade(t *testing.T) {
	s := newSpace(t)
	t.Cleanup(func() { upgrade(t) })
	previously(t)
	s.writer("one", lab.Nodes[0])
	s.writer("two", lab.Nodes[1])
	s.snapshot("before", "one")
	s.ready("before")
	everyone := func(t *testing.T) {
		s := s.in(t)
		t.Logf("the pods have written %d and %d lines", s.writes("one"), s.writes("two"))
	}

	t.Run("Upgrade", func(t *testing.T) {
		before := driverUIDs(t)
		upgrade(t, "--set", "logLevel=4", "--set", "provisioner.workerThreads=10")
		for _, pod := range driverUIDs(t) {
			if slices.Contains(before, pod) {
				t.Errorf("pod %s is there still, with the old values", pod)
			}
		}
		everyone(t)
	})
	t.Run("Restart", func(t *testing.T) {
		kubectl(t, "delete", "pods", "--namespace", driverNamespace, "--all")
		driversReady(t)
		everyone(t)
	})
	t.Run("Uninstall", func(t *testing.T) {
		volumes := []string{s.in(t).volume("one").Name, s.in(t).volume("two").Name}
		content := s.in(t).content("before").Name
		helm(t, "uninstall", release, "--namespace", driverNamespace, "--wait", "--timeout", "2m")
		driversGone(t)
		everyone(t)
		stays(t, volumes, content)
	})
	t.Run("Kustomize", func(t *testing.T) {
		s.in(t).kustomize()
		everyone(t)
	})
	t.Run("Install", func(t *testing.T) {
		// Requests that waited for the driver succeed when it is back.
		s := s.in(t)
		s.claim("waits")
		s.pod("waits")
		s.no(api().CoreV1().Pods(s.ns).Delete(ctx, "two", metav1.DeleteOptions{}))
		upgrade(t)
		s.writes("one")
		awaitGone(t, api().CoreV1().Pods(s.ns), "two", (*corev1.Pod)(nil))
		s.clear("two")
		s.running("waits")
		s.expand("one", "128Mi")
		s.expanded("one", "128Mi")
		s.snapshot("after", "one")
		for _, snapshot := range []string{"before", "after"} {
			s.ready(snapshot)
			s.claim(snapshot, restoreOf(snapshot), size("128Mi"))
			s.pod(snapshot)
			s.ran(snapshot, lab.Nodes[0])
			s.sh(snapshot, "test -s /data/log")
			s.deleteSnapshot(snapshot)
		}
		s.writes("one")
		for _, node := range lab.Nodes {
			check(t, node)
		}
	})
}

// kustomize deploys deploy/kubernetes without the chart, as its README says, uses it and removes it.
func (s *space) kustomize() {
	s.Helper()
	driver := overlay(s.T)
	// Keep the CRDs, since their removal would delete the snapshots of the tests.
	controller := manifests(s.T, "snapshot-controller/snapshot-controller.yaml")
	remove := func() {
		kubectl(s.T, "delete", "--ignore-not-found", "--timeout", "2m", "-k", driver)
		kubectl(s.T, "delete", "--ignore-not-found", "--timeout", "2m", "-f", controller)
		driversGone(s.T)
	}
	s.Cleanup(remove) // before the chart is installed, which refuses objects of others
	kubectl(s.T, "apply", "--server-side", "-k", filepath.Dir(controller))
	kubectl(s.T, "apply", "--server-side", "-k", driver)
	driversReady(s.T)

	const name = "kustomized"
	s.claim(name)
	s.pod(name)
	s.running(name)
	s.sh(name, "echo hello > /data/file")
	s.snapshot(name, name)
	s.ready(name)
	s.deletePod(name)
	s.deleteMember("snapshot", name)
	s.deleteMember("volume", name)
}

// manifests returns a path in deploy/kubernetes.
func manifests(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("../../deploy/kubernetes", name))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// overlay creates an overlay of deploy/kubernetes with the image of the tests.
func overlay(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	base, err := filepath.EvalSymlinks(manifests(t, ""))
	if err == nil {
		base, err = filepath.Rel(dir, base) // kustomize refuses an absolute path
	}
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("resources: [%q]\nimages:\n  - {name: ghcr.io/btrfs-csi/btrfs-csi, newTag: %q}\n", base, lab.tag)
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// driversGone waits until no pod of the driver exists.
func driversGone(t *testing.T) {
	t.Helper()
	eventually(t, "the driver's pods are gone", func() error {
		if left := driverUIDs(t); len(left) > 0 {
			return fmt.Errorf("there are still %q", left)
		}
		return nil
	})
}

// driverUIDs returns the UIDs of all pods of the driver.
func driverUIDs(t *testing.T) (uids []types.UID) {
	t.Helper()
	for _, node := range lab.Nodes {
		pods, err := api().CoreV1().Pods(driverNamespace).List(ctx, driverPods(node))
		if err != nil {
			t.Fatal(err)
		}
		for _, pod := range pods.Items {
			uids = append(uids, pod.UID)
		}
	}
	return uids
}

// stays fails unless all PersistentVolumes, snapshots and custom resources exist without the chart.
func stays(t *testing.T, volumes []string, content string) {
	t.Helper()
	for _, name := range volumes {
		v, err := api().CoreV1().PersistentVolumes().Get(ctx, name, metav1.GetOptions{})
		if err != nil || v.Status.Phase != corev1.VolumeBound {
			t.Errorf("PersistentVolume %s: %v, %s", name, err, describe(v))
			continue
		}
		if _, err := lab.subvolumes.Get(ctx, v.Spec.CSI.VolumeHandle, metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	}
	if c, err := lab.snapshots.SnapshotV1().VolumeSnapshotContents().Get(ctx, content, metav1.GetOptions{}); err != nil || c.DeletionTimestamp != nil {
		t.Errorf("VolumeSnapshotContent %s: %v, %s", content, err, describe(c))
	}
	if pools, err := lab.pools.List(ctx, metav1.ListOptions{}); err != nil || len(pools.Items) != len(lab.Nodes) {
		t.Errorf("there are %d pools (%v), of %d nodes", len(pools.Items), err, len(lab.Nodes))
	}
}
