//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
	"github.com/btrfs-csi/btrfs-csi/test/e2e/components"
)

// space is the namespace of one test.
type space struct {
	*testing.T
	ns string
}

// newSpace creates a namespace. At the end of the test it is deleted, and the test fails if it leaves
// anything in the cluster or on a node.
func newSpace(t *testing.T) *space {
	t.Helper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}}
	namespace, err := api().CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s := &space{t, namespace.Name}
	t.Cleanup(s.remove)
	return s
}

// in returns the namespace for a subtest, with the T of that.
func (s *space) in(t *testing.T) *space { return &space{t, s.ns} }

func (s *space) remove() {
	if s.Failed() {
		// Show its Events before it is deleted.
		s.Log(explain(s.ns))
	}
	s.deleteAll()
	eventually(s.T, "nothing is left of namespace "+s.ns, func() error {
		left, err := s.left()
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("there is still\n  %s", strings.Join(left, "\n  "))
		}
		return err
	})
	// The deletion takes seconds. Do not wait for it.
	if err := api().CoreV1().Namespaces().Delete(ctx, s.ns, metav1.DeleteOptions{}); err != nil {
		s.Error(err)
	}
}

// deleteAll deletes all pods, snapshots and claims without waiting.
func (s *space) deleteAll() {
	s.Helper()
	now := int64(1)
	for what, err := range map[string]error{
		"pods":      api().CoreV1().Pods(s.ns).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{}),
		"snapshots": lab.snapshots.SnapshotV1().VolumeSnapshots(s.ns).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}),
		"claims":    api().CoreV1().PersistentVolumeClaims(s.ns).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}),
	} {
		if err != nil {
			s.Errorf("delete the %s of %s: %v", what, s.ns, err)
		}
	}
}

// left returns the objects and subvolumes that belong to a namespace but are not in it.
func (s *space) left() (left []string, err error) {
	pods, err := api().CoreV1().Pods(s.ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, pod := range pods.Items {
		left = append(left, "Pod "+pod.Name)
	}
	volumes, err := api().CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, v := range volumes.Items {
		if v.Spec.ClaimRef != nil && v.Spec.ClaimRef.Namespace == s.ns {
			left = append(left, fmt.Sprintf("PersistentVolume %s (%s)", v.Name, v.Status.Phase))
		}
	}
	contents, err := lab.snapshots.SnapshotV1().VolumeSnapshotContents().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, c := range contents.Items {
		if c.Spec.VolumeSnapshotRef.Namespace == s.ns {
			left = append(left, "VolumeSnapshotContent "+c.Name)
		}
	}
	subvolumes, err := lab.subvolumes.List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, v := range subvolumes.Items {
		if strings.HasPrefix(v.Annotations["btrfs-csi.github.io/requested-by"], s.ns+"/") {
			left = append(left, "Subvolume "+v.Name)
		}
	}
	onNodes, err := s.onNodes()
	return append(left, onNodes...), err
}

// onNodes returns the subvolumes of a namespace, and mounts of deleted ones.
func (s *space) onNodes() (left []string, err error) {
	for _, node := range lab.Nodes {
		items, err := inventory(node)
		if err != nil {
			return nil, err
		}
		for _, i := range items {
			if i.namespace() == s.ns {
				left = append(left, node.Name+": "+i.Pool+"/"+i.Path+" ("+i.Status+")")
			}
		}
		mounts, err := volumeMounts(node)
		if err != nil {
			return nil, err
		}
		for _, mount := range mounts {
			if strings.Contains(mount, "//deleted") {
				left = append(left, node.Name+": mount "+mount)
			}
		}
	}
	return left, nil
}

// claim creates a PersistentVolumeClaim. Without options it has the chart's class, ReadWriteOnce and 64Mi.
func (s *space) claim(name string, options ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	s.Helper()
	claim, err := s.tryClaim(name, options...)
	if err != nil {
		s.Fatal(err)
	}
	return claim
}

// tryClaim is like claim, but returns an error.
func (s *space) tryClaim(name string, options ...func(*corev1.PersistentVolumeClaim)) (*corev1.PersistentVolumeClaim, error) {
	storageClass := class
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &storageClass,
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")}},
		},
	}
	for _, option := range options {
		option(claim)
	}
	return api().CoreV1().PersistentVolumeClaims(s.ns).Create(ctx, claim, metav1.CreateOptions{})
}

func size(size string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse(size)
	}
}

func ofClass(name string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = &name }
}

func access(modes ...corev1.PersistentVolumeAccessMode) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes = modes }
}

// selected selects the node for the volume, so that it needs no pod.
func selected(node *cluster.Node) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Annotations["volume.kubernetes.io/selected-node"] = node.Name
	}
}

// restoreOf sets a VolumeSnapshot as the source.
func restoreOf(snapshot string) func(*corev1.PersistentVolumeClaim) {
	group := snapshotv1.GroupName
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.DataSource = &corev1.TypedLocalObjectReference{APIGroup: &group, Kind: "VolumeSnapshot", Name: snapshot}
	}
}

// cloneOf sets another claim as the source.
func cloneOf(claim string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: claim}
	}
}

// pod creates a pod that sleeps. Without options it mounts the claim of the same name at /data.
func (s *space) pod(name string, options ...func(*corev1.Pod)) *corev1.Pod {
	s.Helper()
	grace := int64(1)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			NodeSelector:                  map[string]string{},
			SecurityContext:               &corev1.PodSecurityContext{},
			Containers: []corev1.Container{{
				Name: "shell", Image: components.BusyboxImage,
				Command:      []string{"sh", "-c", "trap exit TERM; sleep 1000000 & wait"},
				VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}},
			}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
			}}},
		},
	}
	for _, option := range options {
		option(pod)
	}
	pod, err := api().CoreV1().Pods(s.ns).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		s.Fatal(err)
	}
	return pod
}

// using mounts another claim than the one with the pod's name.
func using(claim string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Volumes[0].PersistentVolumeClaim.ClaimName = claim }
}

// readOnly mounts the claim read-only.
func readOnly(p *corev1.Pod) { p.Spec.Volumes[0].PersistentVolumeClaim.ReadOnly = true }

// on makes the scheduler choose a node.
func on(node *cluster.Node) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.NodeSelector[corev1.LabelHostname] = node.Name }
}

// snapshot creates a VolumeSnapshot of a claim.
func (s *space) snapshot(name, claim string) *snapshotv1.VolumeSnapshot {
	s.Helper()
	snapshotClass := class
	snapshot, err := lab.snapshots.SnapshotV1().VolumeSnapshots(s.ns).Create(ctx, &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: snapshotv1.VolumeSnapshotSpec{
			VolumeSnapshotClassName: &snapshotClass,
			Source:                  snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		s.Fatal(err)
	}
	return snapshot
}

// bound waits until a claim is bound.
func (s *space) bound(claim string) *corev1.PersistentVolumeClaim {
	s.Helper()
	return await(s.T, api().CoreV1().PersistentVolumeClaims(s.ns), claim, "be bound", func(c *corev1.PersistentVolumeClaim) bool {
		return c.Status.Phase == corev1.ClaimBound
	})
}

// volume waits until a claim is bound and returns the PersistentVolume.
func (s *space) volume(claim string) *corev1.PersistentVolume {
	s.Helper()
	v, err := api().CoreV1().PersistentVolumes().Get(ctx, s.bound(claim).Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	return v
}

// running waits until a pod is ready.
func (s *space) running(pod string) *corev1.Pod {
	s.Helper()
	return await(s.T, api().CoreV1().Pods(s.ns), pod, "run and be ready", isReady)
}

// ready waits until a snapshot is ready to use.
func (s *space) ready(snapshot string) *snapshotv1.VolumeSnapshot {
	s.Helper()
	return await(s.T, lab.snapshots.SnapshotV1().VolumeSnapshots(s.ns), snapshot, "be ready to use", func(v *snapshotv1.VolumeSnapshot) bool {
		return v.Status != nil && v.Status.ReadyToUse != nil && *v.Status.ReadyToUse
	})
}

// content waits until a snapshot is ready and returns its VolumeSnapshotContent.
func (s *space) content(snapshot string) *snapshotv1.VolumeSnapshotContent {
	s.Helper()
	name := *s.ready(snapshot).Status.BoundVolumeSnapshotContentName
	c, err := lab.snapshots.SnapshotV1().VolumeSnapshotContents().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	return c
}

// deletePod deletes a pod and waits until it and its mounts are gone.
func (s *space) deletePod(name string) {
	s.Helper()
	s.no(api().CoreV1().Pods(s.ns).Delete(ctx, name, metav1.DeleteOptions{}))
	awaitGone(s.T, api().CoreV1().Pods(s.ns), name, (*corev1.Pod)(nil))
}

// deleteClaim deletes a claim and waits until it is gone. The volume may still exist.
func (s *space) deleteClaim(name string) {
	s.Helper()
	s.no(api().CoreV1().PersistentVolumeClaims(s.ns).Delete(ctx, name, metav1.DeleteOptions{}))
	awaitGone(s.T, api().CoreV1().PersistentVolumeClaims(s.ns), name, (*corev1.PersistentVolumeClaim)(nil))
}

// deleteSnapshot deletes a snapshot and waits until it is gone. The content may still exist.
func (s *space) deleteSnapshot(name string) {
	s.Helper()
	snapshots := lab.snapshots.SnapshotV1().VolumeSnapshots(s.ns)
	s.no(snapshots.Delete(ctx, name, metav1.DeleteOptions{}))
	awaitGone(s.T, snapshots, name, (*snapshotv1.VolumeSnapshot)(nil))
}

// no fails the test for an error.
func (s *space) no(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// sh runs shell commands in a pod and returns their output. It fails the test if one fails.
func (s *space) sh(pod, commands string) string {
	s.Helper()
	return must(s.T)(execIn(s.ns, pod, "", "sh", "-ec", commands))
}

// try runs shell commands in a pod. The error of one that fails contains its stderr.
func (s *space) try(pod, commands string) (string, error) {
	return execIn(s.ns, pod, "", "sh", "-c", commands)
}

// execIn runs a command in a container of a pod, "" for the first one.
func execIn(namespace, pod, container string, command ...string) (string, error) {
	request := api().CoreV1().RESTClient().Post().Namespace(namespace).Resource("pods").Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(lab.RESTConfig(), "GET", request.URL().String())
	if err != nil {
		return "", err
	}
	var stdout, stderr bytes.Buffer
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		err = fmt.Errorf("in pod %s: %s: %w: %s%s", pod, strings.Join(command, " "), err, stderr.String(), stdout.String())
	}
	return stdout.String(), err
}

// event waits for an Event on an object of the namespace with a reason and a message that contains all
// words, and returns the message.
func (s *space) event(kind, name, reason string, words ...string) string {
	s.Helper()
	return awaitEvent(s.T, s.ns, kind, name, reason, words...)
}

// awaitEvent is event for any namespace. Events on cluster-scoped objects are in "default".
func awaitEvent(t *testing.T, namespace, kind, name, reason string, words ...string) (message string) {
	t.Helper()
	about := metav1.ListOptions{FieldSelector: "involvedObject.kind=" + kind + ",involvedObject.name=" + name}
	err := follow(patience, api().CoreV1().Events(namespace), about, func(e *corev1.Event) bool {
		if e == nil || e.Reason != reason || slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(e.Message, w) }) {
			return false
		}
		message = e.Message
		return true
	})
	if err != nil {
		t.Fatalf("%v for an Event %s on %s %s that says %q\n%s", err, reason, kind, name, words, explain(namespace, driverNamespace))
	}
	return message
}

// apply applies a manifest of deploy/examples unchanged.
func (s *space) apply(example string) {
	s.Helper()
	kubectl(s.T, "apply", "--namespace", s.ns, "-f", examples(example))
}

// examples returns the path of an example.
func examples(name string) string {
	path, _ := filepath.Abs(filepath.Join("../../deploy/examples", name)) // Abs fails only without a working directory
	if _, err := os.Stat(path); err != nil {
		panic(err)
	}
	return path
}

// expand requests a larger size.
func (s *space) expand(claim, to string) {
	s.Helper()
	patch := fmt.Sprintf(`{"spec":{"resources":{"requests":{"storage":%q}}}}`, to)
	_, err := api().CoreV1().PersistentVolumeClaims(s.ns).Patch(ctx, claim, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	s.no(err)
}

// expanded waits until a claim has a size and no resize is pending.
func (s *space) expanded(claim, to string) *corev1.PersistentVolumeClaim {
	s.Helper()
	want := resource.MustParse(to)
	return await(s.T, api().CoreV1().PersistentVolumeClaims(s.ns), claim, "be of "+to, func(c *corev1.PersistentVolumeClaim) bool {
		return c.Status.Capacity.Storage().Cmp(want) == 0 && len(c.Status.AllocatedResourceStatuses) == 0
	})
}
