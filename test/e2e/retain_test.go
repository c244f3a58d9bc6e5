//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// reclaim sets the reclaim policy of a volume.
func reclaim(volume string, policy corev1.PersistentVolumeReclaimPolicy) error {
	patch := fmt.Appendf(nil, `{"spec":{"persistentVolumeReclaimPolicy":%q}}`, policy)
	_, err := api().CoreV1().PersistentVolumes().Patch(ctx, volume, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

func retain(c *storagev1.StorageClass) {
	policy := corev1.PersistentVolumeReclaimRetain
	c.ReclaimPolicy = &policy
}

// operations is the path of a document with recipes that the tests follow.
const operations = "../../docs/operations.md"

// recipe returns the only code block of a document that contains a text.
func recipe(t *testing.T, document, text string) string {
	t.Helper()
	data, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	for i, block := range strings.Split(string(data), "\n```") {
		if _, commands, _ := strings.Cut(block, "\n"); i%2 == 1 && strings.Contains(commands, text) {
			return commands + "\n"
		}
	}
	t.Fatalf("%s has no block with %q", document, text)
	return ""
}

// ofVolume makes a claim request a certain PersistentVolume.
func ofVolume(name string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = name }
}

// A retained volume outlives its claim, and can be used again as the README of the examples says.
func TestRetain(t *testing.T) {
	t.Parallel()
	s, node := newSpace(t), lab.Nodes[0]
	retained := newClass(t, nil, retain)
	s.claim("data", ofClass(retained))
	s.pod("data", on(node))
	s.running("data")
	s.sh("data", "echo kept > /data/file")
	volume, path := s.volume("data"), s.pathOf("volume", "data")
	// A failing test must not leave it either.
	t.Cleanup(func() { s.no(ignoreGone(reclaim(volume.Name, corev1.PersistentVolumeReclaimDelete))) })
	if policy := volume.Spec.PersistentVolumeReclaimPolicy; policy != corev1.PersistentVolumeReclaimRetain {
		t.Fatalf("the reclaim policy of the volume is %s", policy)
	}

	s.deletePod("data")
	s.deleteClaim("data")
	volumes := api().CoreV1().PersistentVolumes()
	await(t, volumes, volume.Name, "be Released", inPhase(corev1.VolumeReleased))
	onNode(t, node, "btrfs subvolume show "+path+" && grep -x kept "+path+"/file")

	command := strings.NewReplacer("kubectl ", lab.Program("kubectl")+" ", " PV ", " "+volume.Name+" ").
		Replace(recipe(t, examples("README.md"), "kubectl patch persistentvolume PV "))
	must(t)(runTool("sh", "-ec", command))
	await(t, volumes, volume.Name, "be Available", inPhase(corev1.VolumeAvailable))
	s.claim("again", ofClass(retained), ofVolume(volume.Name))
	s.pod("again")
	s.ran("again", node)
	s.sh("again", "grep -x kept /data/file && echo more >> /data/file")
	if now := s.volume("again"); now.UID != volume.UID {
		t.Errorf("the claim has %s, it asked for %s", now.Name, volume.Name)
	}

	s.deletePod("again")
	s.no(reclaim(volume.Name, corev1.PersistentVolumeReclaimDelete))
	s.clear("again")
	onNode(t, node, "! test -e "+path)
}

// Orphans can be used again, and be deleted, as the README of the examples says.
func TestForgotten(t *testing.T) {
	t.Parallel()
	s, node := newSpace(t), lab.Nodes[1]
	s.claim("data")
	s.pod("data", on(node))
	s.running("data")
	s.sh("data", "echo kept > /data/file && sync /data/file")
	s.snapshot("data", "data")
	volume, snapshot := s.volume("data"), *s.content("data").Status.SnapshotHandle
	handle := volume.Spec.CSI.VolumeHandle
	paths := []string{s.pathOf("volume", "data"), s.pathOf("snapshot", "data")}
	s.deletePod("data")
	s.forgetSnapshot("data")
	s.forget("data")

	manifest := strings.NewReplacer("ID", handle, "SIZE", volume.Spec.Capacity.Storage().String(), "POOL-ID", poolID(t, node, "default")).
		Replace(recipe(t, examples("README.md"), "kind: PersistentVolume\n"))
	const retained = "  persistentVolumeReclaimPolicy: Retain\n"
	removal := strings.Replace(manifest, retained, recipe(t, examples("README.md"), "claimRef: {"), 1)
	if removal == manifest {
		t.Fatalf("no line of the manifest is %q:\n%s", retained, manifest)
	}
	volumes := api().CoreV1().PersistentVolumes()
	s.applyText(manifest)
	s.claim("again", ofVolume(handle))
	s.pod("again")
	s.ran("again", node)
	s.sh("again", "grep -x kept /data/file")
	s.deletePod("again")
	s.deleteClaim("again")
	s.no(volumes.Delete(ctx, handle, metav1.DeleteOptions{}))
	awaitGone(t, volumes, handle, volume)
	onNode(t, node, "grep -x kept "+paths[0]+"/file")

	s.applyText(removal)
	s.deleted(node, handle)
	awaitGone(t, volumes, handle, volume)

	s.applyText(strings.NewReplacer("name: ID", "name: "+snapshot, "Handle: ID", "Handle: "+snapshot, "Name: ID", "Name: "+snapshot, "namespace: default", "namespace: "+s.ns).
		Replace(recipe(t, examples("README.md"), "kind: VolumeSnapshotContent\n")))
	s.ready("found")
	s.claim("restored", restoreOf("found"))
	s.pod("restored")
	s.ran("restored", node)
	s.sh("restored", "grep -x kept /data/file")
	s.deleteSnapshot("found")
	s.deleted(node, snapshot)
	for _, path := range paths {
		onNode(t, node, "! test -e "+path)
	}
}

// applyText applies a manifest.
func (s *space) applyText(manifest string) {
	s.Helper()
	file := filepath.Join(s.TempDir(), "manifest.yaml")
	s.no(os.WriteFile(file, []byte(manifest), 0o600))
	kubectl(s.T, "apply", "-f", file)
}

func inPhase(phase corev1.PersistentVolumePhase) func(*corev1.PersistentVolume) bool {
	return func(v *corev1.PersistentVolume) bool { return v.Status.Phase == phase }
}
