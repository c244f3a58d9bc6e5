//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
)

// eachNode runs a subtest for each node, in parallel, and returns when all have ended.
func eachNode(t *testing.T, test func(*testing.T, *cluster.Node)) {
	t.Run("on", func(t *testing.T) {
		for _, node := range lab.Nodes {
			t.Run(node.Name, func(t *testing.T) {
				t.Parallel()
				test(t, node)
			})
		}
	})
}

// node returns a node by its name.
func node(t *testing.T, name string) *cluster.Node {
	t.Helper()
	for _, n := range lab.Nodes {
		if n.Name == name {
			return n
		}
	}
	t.Fatalf("there is no node %q", name)
	return nil
}

// onNode runs a shell command on a node, outside of all pods, and fails the test if it fails.
func onNode(t *testing.T, node *cluster.Node, command string) string {
	t.Helper()
	out, err := node.Exec(ctx, "sh", "-c", command)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// driverPods selects the driver's pods on a node.
func driverPods(node *cluster.Node) metav1.ListOptions {
	return metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/name=btrfs-csi,app.kubernetes.io/component=node",
		FieldSelector: "spec.nodeName=" + node.Name,
	}
}

// driverPod returns the driver's pod on a node, in any state.
func driverPod(node *cluster.Node) (*corev1.Pod, error) {
	pods, err := api().CoreV1().Pods(driverNamespace).List(ctx, driverPods(node))
	if err != nil {
		return nil, err
	}
	for _, pod := range pods.Items {
		if pod.DeletionTimestamp == nil {
			return &pod, nil
		}
	}
	return nil, fmt.Errorf("there is no pod of the driver on %s", node.Name)
}

// driverReady waits until the driver's pod on a node is ready, sidecars included.
func driverReady(t *testing.T, node *cluster.Node) *corev1.Pod {
	t.Helper()
	var ready *corev1.Pod
	err := follow(patience, api().CoreV1().Pods(driverNamespace), driverPods(node), func(pod *corev1.Pod) bool {
		if pod == nil || pod.DeletionTimestamp != nil || !isReady(pod) {
			return false
		}
		ready = pod
		return true
	})
	if err != nil {
		t.Fatalf("%v for the driver to be ready on %s\n%s", err, node.Name, explain(driverNamespace))
	}
	return ready
}

// killDriver kills the driver's process on a node with SIGKILL. The kubelet starts it again.
func killDriver(t *testing.T, node *cluster.Node) {
	t.Helper()
	onNode(t, node, "kill -KILL $(pidof btrfs-csi)")
}

// inDriver runs a command in the driver's container on a node.
func inDriver(node *cluster.Node, command ...string) (string, error) {
	pod, err := driverPod(node)
	if err != nil {
		return "", err
	}
	return execIn(driverNamespace, pod.Name, "btrfs-csi", command...)
}

// item is a volume or snapshot on disk, as `btrfs-csi ls` shows it.
type item struct {
	ID     string            `json:"id"`
	Kind   string            `json:"kind"` // Volume, Snapshot or ReadOnlyVolume
	Size   int64             `json:"size"`
	Labels map[string]string `json:"labels"`
	UUID   string            `json:"uuid"`
	Pool   string            `json:"pool"`
	PoolID string            `json:"poolID"`
	Path   string            `json:"path"`   // within the pool
	Status string            `json:"status"` // Ready, ...
}

// namespace returns the namespace of the claim or VolumeSnapshot that requested it.
func (i item) namespace() string {
	return i.Labels["pvc/namespace"] + i.Labels["volumesnapshot/namespace"]
}

// inventory returns the output of `btrfs-csi ls` in the driver's container of a node.
func inventory(node *cluster.Node) (items []item, err error) {
	out, err := inDriver(node, "btrfs-csi", "ls", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &items)
	}
	return items, err
}

// find returns the item with a handle on a node, nil for none.
func find(t *testing.T, node *cluster.Node, handle string) *item {
	t.Helper()
	items, err := inventory(node)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range items {
		if i.ID == handle {
			return &i
		}
	}
	return nil
}

// poolID returns the ID of a pool of a node.
func poolID(t *testing.T, node *cluster.Node, pool string) string {
	t.Helper()
	var file struct{ ID string }
	text := onNode(t, node, "cat /var/lib/btrfs-csi/pools/"+pool+"/pool.json")
	if err := json.Unmarshal([]byte(text), &file); err != nil || file.ID == "" {
		t.Fatalf("pool.json of %s on %s is %q: %v", pool, node.Name, text, err)
	}
	return file.ID
}

// check fails unless `btrfs-csi check` on a node finds nothing.
func check(t *testing.T, node *cluster.Node) {
	t.Helper()
	if out, err := inDriver(node, "btrfs-csi", "check"); err != nil || !strings.Contains(out, "Nothing is wrong") {
		t.Errorf("btrfs-csi check on %s: %v\n%s", node.Name, err, out)
	}
}
