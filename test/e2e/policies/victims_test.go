//go:build e2e

package policies

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// anything allows every change of a field.
func anything(fields ...string) (patterns []string) {
	for _, field := range fields {
		patterns = append(patterns, "* "+strings.ReplaceAll(field, "/", "|"))
	}
	return patterns
}

func annotations(keys ...string) (patterns []string) {
	for _, key := range keys {
		patterns = append(patterns, anything("metadata.annotations."+key)...)
	}
	return patterns
}

// pattern is an allowed change.
func pattern(what string) string { return strings.ReplaceAll(what, "/", "|") }

func both(lists ...[]string) (all []string) {
	for _, list := range lists {
		all = append(all, list...)
	}
	return all
}

// world makes the objects of the cluster, in the place of an administrator and of Kubernetes' controllers.
type world struct {
	*testing.T
	victims []victim
}

func makeVictims(t *testing.T) []victim {
	t.Helper()
	w := newWorld(t)
	w.nodes()
	w.claimsAndVolumes()
	w.snapshots()
	w.groups()
	w.mirror()
	w.capacities()
	w.leases()
	w.events()
	return w.victims
}

func makeNamespace(t *testing.T) {
	t.Helper()
	_, err := core.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: victims}}, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		no(t, err)
	}
}

// parse returns the object in a YAML text.
func (w *world) parse(text string, args ...any) (fields map[string]any) {
	w.Helper()
	no(w.T, yaml.Unmarshal(fmt.Appendf(nil, text, args...), &fields))
	return normal(fields)
}

// put creates an object with its status, and returns it.
func (w *world) put(k kind, namespace, text string, args ...any) *unstructured.Unstructured {
	w.Helper()
	object := &unstructured.Unstructured{Object: w.parse(text, args...)}
	objects := k.objects(admin, namespace)
	made, err := objects.Create(ctx, object, metav1.CreateOptions{})
	no(w.T, err)
	if status, ok := object.Object["status"]; ok {
		made.Object["status"] = status
		made, err = objects.UpdateStatus(ctx, made, metav1.UpdateOptions{})
		no(w.T, err)
	}
	return made
}

// normal converts numbers to the types that the JSON decoder of Kubernetes uses.
func normal(fields map[string]any) map[string]any {
	for key, value := range fields {
		fields[key] = normalValue(value)
	}
	return fields
}

func normalValue(value any) any {
	switch v := value.(type) {
	case map[string]any:
		return normal(v)
	case []any:
		for i := range v {
			v[i] = normalValue(v[i])
		}
	case float64:
		return int64(v)
	}
	return value
}

// attacked adds an object to the victims.
func (w *world) attacked(what string, k kind, object *unstructured.Unstructured, may ...string) {
	w.victims = append(w.victims, victim{what: what, kind: k, namespace: object.GetNamespace(), name: object.GetName(), may: may})
}

// deletable allows that the driver deletes the last victim.
func (w *world) deletable() { w.victims[len(w.victims)-1].mayDelete = true }

// makeable adds an object that the driver may make.
func (w *world) makeable(what string, k kind, namespace string, may []string, text string, args ...any) {
	w.Helper()
	w.victims = append(w.victims, victim{what: what, kind: k, namespace: namespace, made: w.parse(text, args...), may: may})
}

// turned sets the status of an object, in the place of Kubernetes' controllers.
func (w *world) turned(k kind, object *unstructured.Unstructured, status string) *unstructured.Unstructured {
	w.Helper()
	object.Object["status"] = w.parse("%s", status)
	object, err := k.objects(admin, object.GetNamespace()).UpdateStatus(ctx, object, metav1.UpdateOptions{})
	no(w.T, err)
	return object
}

func makeNode(name string) error {
	pool := map[string]string{mine: pool1, theirs: pool2}[name]
	node, err := core.CoreV1().Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Labels: map[string]string{"kubernetes.io/hostname": name, topology + pool: "true"},
			Annotations: map[string]string{"e2e.example.org/have": "x"}, Finalizers: []string{"e2e.example.org/have"},
		},
		Spec: corev1.NodeSpec{Unschedulable: true, ProviderID: "e2e://" + name, PodCIDR: "10.244.9.0/24", PodCIDRs: []string{"10.244.9.0/24"}},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	node.Status.Capacity = corev1.ResourceList{corev1.ResourcePods: resource.MustParse("10")}
	_, err = core.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{})
	return errors.Join(err)
}

func (w *world) nodes() {
	nodes := kind{coreV1, "nodes"}
	for _, name := range []string{mine, theirs} {
		node, err := nodes.objects(admin, "").Get(ctx, name, metav1.GetOptions{})
		no(w.T, err)
		if name == mine {
			w.attacked("the own node", nodes, node, pattern("remove metadata.labels."+topology+pool1), pattern("add metadata.labels."+topology+pool3))
		} else {
			w.attacked("another node", nodes, node)
		}
	}
}

var (
	volumes      = kind{coreV1, "persistentvolumes"}
	claims       = kind{coreV1, "persistentvolumeclaims"}
	claimsStatus = kind{coreV1, "persistentvolumeclaims/status"}
)

const claimText = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s, annotations: {%s}, labels: {app: x}}
spec: {accessModes: [ReadWriteOnce], storageClassName: btrfs, resources: {requests: {storage: 64Mi}}%s}
`

// volumeText is the PersistentVolume that csi-provisioner makes.
const volumeText = `
apiVersion: v1
kind: PersistentVolume
metadata:
  name: %[1]s
  annotations:
    pv.kubernetes.io/provisioned-by: %[2]s
    volume.kubernetes.io/provisioner-deletion-secret-name: ""
    volume.kubernetes.io/provisioner-deletion-secret-namespace: ""
  finalizers: [external-provisioner.volume.kubernetes.io/finalizer]
spec:
  accessModes: [ReadWriteOnce]
  capacity: {storage: 64Mi}
  claimRef: {apiVersion: v1, kind: PersistentVolumeClaim, namespace: victims, name: %[3]s, uid: %[4]s, resourceVersion: "7"}
  csi:
    driver: %[2]s
    volumeHandle: %[1]s
    volumeAttributes: {poolID: %[5]s, storage.kubernetes.io/csiProvisionerIdentity: 1-2-btrfs-csi.github.io-node2}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: topology.btrfs-csi.github.io/%[5]s, operator: In, values: ["true"]}]}]}}
  persistentVolumeReclaimPolicy: %[6]s
  storageClassName: btrfs
  volumeMode: Filesystem
`

func provisioner(name string) string {
	return fmt.Sprintf("volume.kubernetes.io/storage-provisioner: %[1]s, volume.beta.kubernetes.io/storage-provisioner: %[1]s", name)
}

// volumeMay are the allowed changes of every volume of the driver.
var volumeMay = both(annotations(lineage...), []string{"change spec.capacity.storage"})

func (w *world) claimsAndVolumes() {
	size := []string{"change status.capacity.storage", pattern("add metadata.annotations." + expanded)}
	for _, node := range []string{mine, theirs} {
		pool := map[string]string{mine: pool1, theirs: pool2}[node]
		claim := w.put(claims, victims, claimText, "bound-"+node, provisioner(driver)+", "+selectedNode+": "+node, "")
		name := "pvc-" + string(claim.GetUID())
		volume := w.turned(volumes, w.put(volumes, "", volumeText, name, driver, claim.GetName(), claim.GetUID(), pool, "Delete"), "phase: Bound")
		no(w.T, unstructured.SetNestedField(claim.Object, name, "spec", "volumeName"))
		claim, err := claims.objects(admin, victims).Update(ctx, claim, metav1.UpdateOptions{})
		no(w.T, err)
		claim = w.turned(claims, claim, "{phase: Bound, accessModes: [ReadWriteOnce], capacity: {storage: 64Mi}}")
		w.attacked("a bound volume on "+node, volumes, volume, volumeMay...)
		may := []string{pattern("add metadata.finalizers." + cloneFinalizer)}
		if node == mine { // the driver of a node without room does this
			may = append(may, pattern("remove metadata.annotations."+selectedNode))
		}
		w.attacked("a bound claim on "+node, claims, claim, may...)
		w.attacked("a bound claim on "+node, claimsStatus, claim, size...)
	}
	for name, c := range map[string]struct{ driver, policy, uid string }{
		"a released volume": {driver, "Delete", "aaaaaaaa-aaaa-4aaa-8aaa-000000000001"},
		"a retained volume": {driver, "Retain", "aaaaaaaa-aaaa-4aaa-8aaa-000000000002"},
		"another driver's":  {"other.example.org", "Delete", "aaaaaaaa-aaaa-4aaa-8aaa-000000000003"},
	} {
		volume := w.turned(volumes, w.put(volumes, "", volumeText, "pvc-"+c.uid, c.driver, "gone", c.uid, pool2, c.policy), "phase: Released")
		switch {
		case c.driver != driver:
			w.attacked(name, volumes, volume)
		case c.policy == "Retain":
			w.attacked(name, volumes, volume, append([]string{pattern("remove metadata.finalizers." + volumeFinalizer)}, volumeMay...)...)
		default:
			w.attacked(name, volumes, volume, volumeMay...)
			w.deletable()
		}
	}
	w.attacked("a directory of a node", volumes, w.put(volumes, "", `{apiVersion: v1, kind: PersistentVolume, metadata: {name: hostpath}, spec: {accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, hostPath: {path: /}, persistentVolumeReclaimPolicy: Retain}}`))
	w.makeable("a volume", volumes, "", both([]string{
		"change spec.capacity.storage", "change spec.claimRef.namespace", "change spec.claimRef.name", "change spec.claimRef.resourceVersion",
		"remove spec.claimRef.resourceVersion", "remove spec.claimRef.kind", "remove spec.claimRef.apiVersion", "add spec.nodeAffinity.required.nodeSelectorTerms",
		"change spec.csi.volumeAttributes.*", "remove spec.csi.volumeAttributes*", "* spec.persistentVolumeReclaimPolicy", "* spec.storageClassName", "remove spec.volumeMode",
		pattern("remove metadata.annotations.volume.kubernetes.io/provisioner-deletion-secret-name"), pattern("remove metadata.annotations.volume.kubernetes.io/provisioner-deletion-secret-namespace"),
		pattern("remove metadata.finalizers." + volumeFinalizer), pattern("add metadata.finalizers.kubernetes.io/pv-protection"),
	}), volumeText, "pvc-aaaaaaaa-aaaa-4aaa-8aaa-000000000009", driver, "open", "aaaaaaaa-aaaa-4aaa-8aaa-000000000009", pool1, "Delete")

	w.attacked("a claim that waits", claims, w.put(claims, victims, claimText, "open", provisioner(driver), ""),
		pattern("add metadata.annotations."+selectedNode), pattern("add metadata.finalizers."+cloneFinalizer))
	w.attacked("a copy that waits", claims, w.put(claims, victims, claimText, "copy", "", ", dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: none}"),
		pattern("add metadata.annotations."+selectedNode), pattern("add metadata.finalizers."+cloneFinalizer))
	foreign := w.put(claims, victims, claimText, "foreign", provisioner("other.example.org"), "")
	w.attacked("another driver's claim", claims, foreign)
	w.attacked("another driver's claim", claimsStatus, foreign)
	ending := w.put(claims, victims, strings.Replace(claimText, "metadata: {", "metadata: {finalizers: ["+cloneFinalizer+"], ", 1), "ending", provisioner(driver), "")
	no(w.T, claims.objects(admin, victims).Delete(ctx, ending.GetName(), metav1.DeleteOptions{}))
	w.attacked("a claim that is deleted", claims, ending, pattern("remove metadata.finalizers."+cloneFinalizer), pattern("add metadata.annotations."+selectedNode))
}

const contentText = `
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotContent
metadata:
  name: %[1]s
  annotations: {e2e.example.org/have: x}
  labels: {app: x%[2]s}
  finalizers: [snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection]
spec:
  deletionPolicy: Delete
  driver: %[3]s
  source: {volumeHandle: pvc-1}
  volumeSnapshotClassName: btrfs
  volumeSnapshotRef: {apiVersion: snapshot.storage.k8s.io/v1, kind: VolumeSnapshot, namespace: victims, name: snap, uid: %[4]s}
%[5]s`

const (
	snapUID     = "bbbbbbbb-bbbb-4bbb-8bbb-000000000001"
	readyStatus = "status: {snapshotHandle: snapshot-" + snapUID + ", creationTime: 1700000000000000000, restoreSize: 67108864, readyToUse: true}"
)

var (
	contents       = kind{snapshots, "volumesnapshotcontents"}
	contentsStatus = kind{snapshots, "volumesnapshotcontents/status"}
)

func (w *world) snapshots() {
	snap := w.put(kind{snapshots, "volumesnapshots"}, victims, `{apiVersion: snapshot.storage.k8s.io/v1, kind: VolumeSnapshot, metadata: {name: snap, annotations: {a: b}, labels: {a: b}}, spec: {volumeSnapshotClassName: btrfs, source: {persistentVolumeClaimName: open}}}`)
	w.attacked("a snapshot", kind{snapshots, "volumesnapshots"}, snap, pattern("add metadata.finalizers."+sourceFinalizer))

	may := both(annotations(lineage...), annotations(beingCreated))
	ready := []string{"change status.readyToUse", "remove status.readyToUse"}
	label := func(node string) string { return ", " + managedBy + ": " + node }
	own := w.put(contents, "", contentText, "content-mine", label(mine), driver, snapUID, readyStatus)
	w.attacked("the own content", contents, own, may...)
	w.attacked("the own content", contentsStatus, own, ready...)
	for name, object := range map[string]*unstructured.Unstructured{
		"another node's content":   w.put(contents, "", contentText, "content-theirs", label(theirs), driver, snapUID, readyStatus),
		"another driver's content": w.put(contents, "", contentText, "content-foreign", label(mine), "other.example.org", snapUID, readyStatus),
	} {
		w.attacked(name, contents, object)
		w.attacked(name, contentsStatus, object)
	}
	// No driver manages it, so the mirror of the driver may take it.
	nobodys := w.put(contents, "", contentText, "content-nobodys", "", driver, snapUID, readyStatus)
	w.attacked("nobody's content", contents, nobodys, pattern("add metadata.labels."+managedBy))
	w.attacked("nobody's content", contentsStatus, nobodys)
	ending := w.put(contents, "", contentText, "content-ending", label(mine), driver, snapUID, readyStatus)
	no(w.T, contents.objects(admin, "").Delete(ctx, ending.GetName(), metav1.DeleteOptions{}))
	w.attacked("the own content that is deleted", contents, ending, append([]string{pattern("remove metadata.finalizers." + contentFinalizer)}, may...)...)
	w.attacked("the own content that is deleted", contentsStatus, ending, both(ready, []string{"remove status.snapshotHandle", "remove status.creationTime", "remove status.restoreSize", "remove status"})...)
}

const groupContentText = `
apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshotContent
metadata:
  name: %[1]s
  annotations: {e2e.example.org/have: x}
  labels: {app: x%[2]s}
  finalizers: [groupsnapshot.storage.kubernetes.io/volumegroupsnapshotcontent-bound-protection]
spec:
  deletionPolicy: Delete
  driver: %[3]s
  source: {volumeHandles: [pvc-1, pvc-2]}
  volumeGroupSnapshotClassName: btrfs
  volumeGroupSnapshotRef: {apiVersion: groupsnapshot.storage.k8s.io/v1, kind: VolumeGroupSnapshot, namespace: victims, name: group, uid: %[4]s}
%[5]s`

const readyGroupStatus = `
status:
  volumeGroupSnapshotHandle: groupsnapshot-` + snapUID + `
  creationTime: "2026-01-01T00:00:00Z"
  readyToUse: true
  volumeSnapshotInfoList:
    - {volumeHandle: pvc-1, snapshotHandle: groupsnapshot-` + snapUID + `-0, creationTime: 1700000000000000000, restoreSize: 67108864, readyToUse: true}
`

var (
	groupContents       = kind{groups, "volumegroupsnapshotcontents"}
	groupContentsStatus = kind{groups, "volumegroupsnapshotcontents/status"}
)

func (w *world) groups() {
	ready := []string{"change status.readyToUse", "remove status.readyToUse"}
	label := func(node string) string { return ", " + managedBy + ": " + node }
	own := w.put(groupContents, "", groupContentText, "group-mine", label(mine), driver, snapUID, readyGroupStatus)
	w.attacked("the own group", groupContents, own)
	w.attacked("the own group", groupContentsStatus, own, ready...)
	for name, object := range map[string]*unstructured.Unstructured{
		"another node's group":   w.put(groupContents, "", groupContentText, "group-theirs", label(theirs), driver, snapUID, readyGroupStatus),
		"another driver's group": w.put(groupContents, "", groupContentText, "group-foreign", label(mine), "other.example.org", snapUID, readyGroupStatus),
	} {
		w.attacked(name, groupContents, object)
		w.attacked(name, groupContentsStatus, object)
	}
	nobodys := w.put(groupContents, "", groupContentText, "group-nobodys", "", driver, snapUID, readyGroupStatus)
	w.attacked("nobody's group", groupContents, nobodys, pattern("add metadata.labels."+managedBy))
	w.attacked("nobody's group", groupContentsStatus, nobodys)
	ending := w.put(groupContents, "", groupContentText, "group-ending", label(mine), driver, snapUID, readyGroupStatus)
	no(w.T, groupContents.objects(admin, "").Delete(ctx, ending.GetName(), metav1.DeleteOptions{}))
	w.attacked("the own group that is deleted", groupContents, ending, pattern("remove metadata.finalizers."+groupFinalizer))
	w.attacked("the own group that is deleted", groupContentsStatus, ending, ready...)
}

const (
	subvolumeText = `
apiVersion: btrfs-csi.github.io/v1alpha1
kind: Subvolume
metadata: {name: %[1]s, annotations: {%[4]s}}
spec: {id: %[1]s, kind: Volume, nodeName: %[2]s, pool: default, poolID: %[3]s, size: 64Mi}
`
	subvolumeStatus = `status: {state: Ready, size: 64Mi, used: 1Mi, created: "2026-01-01T00:00:00Z"}`
	poolText        = `
apiVersion: btrfs-csi.github.io/v1alpha1
kind: Pool
metadata: {name: %[1]s, annotations: {%[3]s}}
spec: {nodeName: "%[2]s", pool: default}
`
	poolStatus = `status: {state: Ready, message: m, size: 10Gi, available: 9Gi, quota: full, subvolumes: 3}`
)

var (
	subvolumes       = kind{ours, "subvolumes"}
	subvolumesStatus = kind{ours, "subvolumes/status"}
	pools            = kind{ours, "pools"}
	poolsStatus      = kind{ours, "pools/status"}
)

func (w *world) mirror() {
	keys := append([]string{requestedByKey, expandRequestKey, objectKey, orphanedSinceKey, markedForDeletionSinceKey}, lineage...)
	spec := []string{"change spec.kind", "change spec.pool", "change spec.poolID", "change spec.size", "remove spec.size"}
	parent := parentKey + ": x, e2e.example.org/have: x"
	own := w.put(subvolumes, "", subvolumeText+subvolumeStatus, "pvc-mine", mine, pool1, parent)
	w.attacked("the own Subvolume", subvolumes, own, both(annotations(keys...), spec)...)
	w.deletable()
	w.attacked("the own Subvolume", subvolumesStatus, own, "change status*", "remove status*")
	other := w.put(subvolumes, "", subvolumeText+subvolumeStatus, "pvc-theirs", theirs, pool2, parent)
	w.attacked("another's Subvolume", subvolumes, other, both(annotations(expandRequestKey), []string{"change spec.size"})...)
	w.attacked("another's Subvolume", subvolumesStatus, other)
	w.makeable("a Subvolume", subvolumes, "", both(annotations(keys...), spec), subvolumeText, "pvc-new", mine, pool1, parentKey+": x")

	own = w.put(pools, "", poolText+poolStatus, pool1, mine, "e2e.example.org/have: x")
	w.attacked("the own Pool", pools, own, "change spec.pool")
	w.attacked("the own Pool", poolsStatus, own, "change status*", "remove status*")
	other = w.put(pools, "", poolText+poolStatus, pool2, theirs, takenFromKey+": node3")
	w.attacked("another's Pool", pools, other)
	w.attacked("another's Pool", poolsStatus, other)
	gave := w.put(pools, "", poolText+poolStatus, pool3, theirs, takenFromKey+": "+mine)
	w.attacked("a Pool that was taken from this node", pools, gave, pattern("remove metadata.annotations."+takenFromKey))
	took := w.put(pools, "", poolText+poolStatus, "44444444-4444-4444-8444-444444444444", mine, takenFromKey+": "+theirs)
	w.attacked("a Pool that was taken from another node", pools, took, "change spec.pool")
	none := w.put(pools, "", poolText+poolStatus, "55555555-5555-4555-8555-555555555555", "", "")
	w.attacked("nobody's Pool", pools, none)
	w.attacked("nobody's Pool", poolsStatus, none)
	w.makeable("a Pool", pools, "", both(annotations(takenFromKey), []string{"change spec.pool", "change metadata.name"}), poolText, "66666666-6666-4666-8666-666666666666", mine, "")
}

var capacities = kind{storageV1, "csistoragecapacities"}

const capacityText = `
apiVersion: storage.k8s.io/v1
kind: CSIStorageCapacity
metadata:
  name: %[1]s
  labels: {csi.storage.k8s.io/drivername: btrfs-csi.github.io, csi.storage.k8s.io/managed-by: external-provisioner-%[2]s}
  ownerReferences: [{apiVersion: apps/v1, kind: DaemonSet, name: btrfs-csi, uid: %[4]s, controller: true}]
nodeTopology: {matchLabels: {topology.btrfs-csi.github.io/%[3]s: "true"}}
storageClassName: btrfs
capacity: 9Gi
maximumVolumeSize: 8Gi
`

func (w *world) capacities() {
	set, err := core.AppsV1().DaemonSets(namespace).Get(ctx, release, metav1.GetOptions{})
	no(w.T, err)
	fields := []string{"* capacity", "* maximumVolumeSize", "remove metadata.ownerReferences"}
	w.attacked("the own free space", capacities, w.put(capacities, namespace, capacityText, "csisc-mine", mine, pool1, set.UID), fields...)
	w.deletable()
	w.attacked("another node's free space", capacities, w.put(capacities, namespace, capacityText, "csisc-theirs", theirs, pool2, set.UID))
	w.makeable("free space", capacities, namespace, append([]string{"change storageClassName", "change metadata.name", "add metadata.generateName"}, fields...), capacityText, "csisc-new", mine, pool1, set.UID)
}

const leaseText = `
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: %s}
spec: {holderIdentity: "%s", leaseDurationSeconds: 15, leaseTransitions: 1, acquireTime: "2026-01-01T00:00:00.000000Z", renewTime: "2026-01-01T00:00:00.000000Z"}
`

func (w *world) leases() {
	leases := kind{elections, "leases"}
	const resizers = "external-resizer-btrfs-csi-github-io"
	may := []string{
		"change spec.leaseDurationSeconds", "change spec.leaseTransitions", "change spec.acquireTime", "change spec.renewTime", "remove spec*",
	}
	w.attacked("the lease of the resizer", leases, w.put(leases, namespace, leaseText, resizers, "driver-"+mine), may...)
	w.makeable("a lease", leases, namespace, may, leaseText, resizers, "driver-"+mine)
}

var events = kind{coreV1, "events"}

const eventText = `
apiVersion: v1
kind: Event
metadata: {name: %[1]s, namespace: victims}
involvedObject: {apiVersion: v1, kind: PersistentVolumeClaim, namespace: victims, name: open, uid: %[2]s}
type: Warning
reason: Why
message: because
count: 1
firstTimestamp: "2026-01-01T00:00:00Z"
lastTimestamp: "2026-01-01T00:00:00Z"
source: {component: "%[3]s", host: "%[4]s"}
reportingComponent: "%[3]s"
reportingInstance: "%[4]s"
`

func (w *world) events() {
	counted := []string{"* message", "* count", "* lastTimestamp"}
	w.attacked("an Event of its own", events, w.put(events, victims, eventText, "mine", snapUID, driver, mine), counted...)
	w.attacked("an Event of the kubelet", events, w.put(events, victims, eventText, "kubelets", snapUID, "kubelet", theirs))
	for _, component := range []string{driver, driver + "_host_1", "external-provisioner", "csi-snapshotter " + driver, "external-resizer " + driver, "external-resizer-btrfs-csi-github-io/x"} {
		w.makeable("an Event of "+component, events, victims, append([]string{
			"change metadata.name", "* reason", "* firstTimestamp", "* involvedObject.name", "* involvedObject.uid", "* involvedObject.apiVersion",
			"remove reportingComponent", "remove reportingInstance", "remove source.host",
		}, counted...), eventText, "new", snapUID, component, mine)
	}
}
