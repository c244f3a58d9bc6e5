//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"

	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// The services of a driver while the API server is away.

// restartsAlone kills the driver in a pod, and waits until another is ready.
func restartsAlone(t *testing.T, node *cluster.Node, pod *corev1.Pod) {
	t.Helper()
	before := onNode(t, node, "pidof btrfs-csi")
	began := time.Now()
	killDriver(t, node)
	eventually(t, "a driver that starts without the API server is ready", func() error {
		now, err := node.Exec(ctx, "pidof", "btrfs-csi")
		if err != nil || string(now) == before {
			return fmt.Errorf("process %q, it was %q (%w)", now, before, err)
		}
		return saysReady(pod)
	})
	t.Logf("without the API server a driver was ready %.1f s after the last was killed", time.Since(began).Seconds())
}

// saysReady fails unless /readyz of the driver in a pod succeeds.
func saysReady(pod *corev1.Pod) error {
	client := http.Client{Timeout: patience}
	response, err := client.Get("http://" + pod.Status.PodIP + ":9808/readyz")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET /readyz: %s", response.Status)
	}
	return nil
}

// controllerOf returns a client for the driver of a node, as its sidecars have one.
func controllerOf(t *testing.T, node *cluster.Node) csi.ControllerClient {
	t.Helper()
	// The path outside of the node.
	socket := filepath.Join(filepath.Dir(lab.LogDir()), node.Name, "disk/kubelet/plugins", driverName, "csi.sock")
	client, err := testkit.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// servesAlone creates a volume and a snapshot of it, as the sidecars would. A driver that has not reached
// the API server since its start deletes neither, because it cannot know whether the cluster still needs
// them. remove deletes both later.
func (s *space) servesAlone(node *cluster.Node) (remove func()) {
	s.Helper()
	driver := controllerOf(s.T, node)
	const pool = "/var/lib/btrfs-csi/pools/default/"
	volume, err := driver.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name:          "pvc-" + uuid.NewString(),
		CapacityRange: &csi.CapacityRange{RequiredBytes: 64 << 20},
		VolumeCapabilities: []*csi.VolumeCapability{{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		}},
		// So that newSpace finds it if it stays.
		Parameters: map[string]string{"csi.storage.k8s.io/pvc/namespace": s.ns, "csi.storage.k8s.io/pvc/name": "alone"},
	})
	s.no(err)
	active := pool + "active/" + volume.GetVolume().GetVolumeId()
	onNode(s.T, node, "echo alone > "+active+"/fs/file")
	snapshot, err := driver.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{
		Name: "snapshot-" + uuid.NewString(), SourceVolumeId: volume.GetVolume().GetVolumeId(),
	})
	s.no(err)
	committed := pool + "committed/" + snapshot.GetSnapshot().GetSnapshotId()
	onNode(s.T, node, "grep -x alone "+committed+"/fs/file")
	deleted := func() error {
		_, errSnapshot := driver.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: snapshot.GetSnapshot().GetSnapshotId()})
		_, errVolume := driver.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: volume.GetVolume().GetVolumeId()})
		return errors.Join(errSnapshot, errVolume)
	}
	_, err = driver.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: volume.GetVolume().GetVolumeId()})
	if status.Code(err) != codes.Unavailable {
		s.Errorf("a delete that the cluster knows nothing of: got %v, want UNAVAILABLE", err)
	}
	onNode(s.T, node, "test -e "+active)
	return func() {
		s.Helper()
		eventually(s.T, "what was made without the API server is deleted", deleted)
		onNode(s.T, node, "! test -e "+active+" && ! test -e "+committed)
	}
}
