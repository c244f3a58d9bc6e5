//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// reclaim sets what becomes of a volume when its claim is deleted.
func reclaim(volume string, policy corev1.PersistentVolumeReclaimPolicy) error {
	patch := fmt.Appendf(nil, `{"spec":{"persistentVolumeReclaimPolicy":%q}}`, policy)
	_, err := api().CoreV1().PersistentVolumes().Patch(ctx, volume, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

func retain(c *storagev1.StorageClass) {
	policy := corev1.PersistentVolumeReclaimRetain
	c.ReclaimPolicy = &policy
}

// recipe is the one command of the README of the examples that begins with some words.
func recipe(t *testing.T, words string) string {
	t.Helper()
	text, err := os.ReadFile(examples("README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, words) {
			return strings.TrimSpace(line)
		}
	}
	t.Fatalf("deploy/examples/README.md has no line that begins with %q", words)
	return ""
}

// ofVolume is for a claim that wants one PersistentVolume.
func ofVolume(name string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = name }
}

// A volume that is retained outlives its claim, and is used again as the README of the
// examples says.
func TestRetain(t *testing.T) {
	t.Parallel()
	s, node := newSpace(t), lab.Nodes[0]
	retained := newClass(t, nil, retain)
	s.claim("data", ofClass(retained))
	s.pod("data", on(node))
	s.running("data")
	s.sh("data", "echo kept > /data/file")
	volume, path := s.volume("data"), s.pathOf("volume", "data")
	// A test that fails leaves nothing either.
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
		Replace(recipe(t, "kubectl patch persistentvolume PV "))
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

func inPhase(phase corev1.PersistentVolumePhase) func(*corev1.PersistentVolume) bool {
	return func(v *corev1.PersistentVolume) bool { return v.Status.Phase == phase }
}
