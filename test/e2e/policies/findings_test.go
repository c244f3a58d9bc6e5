//go:build e2e

package policies

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// step is a patch that an attacker tries with the token of the driver on node1.
type step struct {
	what    string
	patch   string
	because string // the message of the policy that refuses it; "" if it is allowed
}

// try tries steps on an object by dry runs.
func try(t *testing.T, k kind, object *unstructured.Unstructured, steps ...step) {
	t.Helper()
	objects := k.objects(attacker, object.GetNamespace())
	for _, s := range steps {
		var err error
		if k == pools { // the roles have no right to patch them
			changed := object.DeepCopy()
			var patch map[string]any
			no(t, json.Unmarshal([]byte(s.patch), &patch))
			merge(changed.Object, patch)
			_, err = objects.Update(ctx, changed, metav1.UpdateOptions{DryRun: dry})
		} else {
			_, err = objects.Patch(ctx, object.GetName(), types.MergePatchType, []byte(s.patch), metav1.PatchOptions{DryRun: dry}, k.subresources()...)
		}
		s.judge(t, err)
	}
}

func (s step) judge(t *testing.T, err error) {
	t.Helper()
	if s.because == "" {
		if err != nil {
			t.Errorf("%s: the driver has to be let: %v", s.what, err)
		}
		return
	}
	if err == nil || !strings.Contains(err.Error(), "ValidatingAdmissionPolicy '"+release) || !strings.Contains(err.Error(), s.because) {
		t.Errorf("%s: a policy has to refuse it and say %q; instead: %v", s.what, s.because, err)
	}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	makeNamespace(t)
	return &world{T: t}
}

// TestSnapshotsOfOthers tries patches, one of which would delete every snapshot of the cluster.
func TestSnapshotsOfOthers(t *testing.T) {
	w := newWorld(t)
	managed := func(node string) string { return ", " + managedBy + ": " + node }
	content := w.put(contents, "", contentText, "finding-1", managed(theirs), driver, snapUID, readyStatus)
	const gone = `"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"gone","uid":"99999999-9999-4999-8999-999999999999"}]`
	taken := fmt.Sprintf(`"labels":{%q:%q}`, managedBy, mine)
	deleted := fmt.Sprintf(`"annotations":{%q:"yes"}`, beingDeleted)
	const metadata, finalizer = "may change no metadata of a snapshot's content but", "may change no finalizer of a snapshot's content"
	try(t, contents, content,
		step{"all at once", `{"metadata":{` + taken + "," + deleted + "," + gone + `}}`, metadata},
		step{"with an owner that is gone", `{"metadata":{` + taken + "," + gone + `}}`, metadata},
		step{"as one that is being deleted", `{"metadata":{` + taken + "," + deleted + `}}`, metadata},
		step{"with a Secret", fmt.Sprintf(`{"metadata":{%s,"annotations":{"snapshot.storage.kubernetes.io/deletion-secret-name":"cloud"}}}`, taken), metadata},
		step{"without its finalizer", `{"metadata":{` + taken + `,"finalizers":null}}`, finalizer},
		step{"with another label", fmt.Sprintf(`{"metadata":{"labels":{%q:%q,"app":"y"}}}`, managedBy, mine), metadata},
		step{"with what the mirror writes", fmt.Sprintf(`{"metadata":{%s,"annotations":{%q:"x"}}}`, taken, uuidKey), ""},
	)
	own := w.put(contents, "", contentText, "finding-7", managed(mine), driver, snapUID, readyStatus)
	fresh := w.put(contents, "", contentText, "finding-7-fresh", managed(mine), driver, snapUID, "")
	static := w.put(contents, "", strings.Replace(contentText, "volumeHandle: pvc-1", "snapshotHandle: backup", 1), "finding-7-static", managed(mine), driver, snapUID, "")
	const handle, known = "only the handle that has the UID", "may change nothing of a snapshot's status but"
	give := func(handle string) string { return fmt.Sprintf(`{"status":{"snapshotHandle":%q}}`, handle) }
	try(t, contentsStatus, own,
		step{"another handle with its UID", give("evil-" + snapUID), handle},
		step{"no handle any more", `{"status":{"snapshotHandle":null}}`, known},
		step{"another time", `{"status":{"creationTime":1}}`, known},
		step{"of a group", `{"status":{"volumeGroupSnapshotHandle":"x"}}`, known},
		step{"an error", `{"status":{"readyToUse":false,"error":{"message":"m"}}}`, ""})
	try(t, contentsStatus, fresh,
		step{"its handle", give("snapshot-" + snapUID), ""},
		step{"a handle with its UID", give("evil-" + snapUID), handle},
		step{"another's handle", give("snapshot-bbbbbbbb-bbbb-4bbb-8bbb-000000000002"), handle})
	try(t, contentsStatus, static, step{"the handle of its spec", give("backup"), ""}, step{"another one", give("snapshot-" + snapUID), handle})
}

// TestVolumesOfOthers tries to create a PersistentVolume, for which another driver would delete a volume with a
// Secret of the cluster.
func TestVolumesOfOthers(t *testing.T) {
	w := newWorld(t)
	const uid = "aaaaaaaa-aaaa-4aaa-8aaa-00000000000a"
	const claim, foreign = "for the claim only whose UID is in its name and handle", "may make no volume that is another provisioner's"
	for _, s := range []step{
		{"as the provisioner makes it", `{}`, ""},
		{"as another provisioner's", `{"metadata":{"annotations":{"pv.kubernetes.io/provisioned-by":"other.example.org"}}}`, foreign},
		{"of no provisioner", `{"metadata":{"annotations":{"pv.kubernetes.io/provisioned-by":null}}}`, foreign},
		{"migrated to another provisioner", `{"metadata":{"annotations":{"pv.kubernetes.io/migrated-to":"other.example.org"}}}`, foreign},
		{"with a Secret to be deleted with", `{"metadata":{"annotations":{"volume.kubernetes.io/provisioner-deletion-secret-name":"cloud","volume.kubernetes.io/provisioner-deletion-secret-namespace":"kube-system"}}}`, foreign},
		{"with the handle of another driver", `{"metadata":{"name":"vol-0a1b2c3d"},"spec":{"csi":{"volumeHandle":"vol-0a1b2c3d"},"claimRef":{"uid":"0a1b2c3d"}}}`, claim},
		{"with a prefix of its own", `{"metadata":{"name":"vol-` + uid + `"},"spec":{"csi":{"volumeHandle":"vol-` + uid + `"}}}`, claim},
		{"for no claim", `{"spec":{"claimRef":null}}`, claim},
		{"of another handle", `{"spec":{"csi":{"volumeHandle":"pvc-x"}}}`, claim},
		{"with an owner", `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"gone","uid":"` + uid + `"}]}}`, "may change no labels and owners"},
		{"with a finalizer", `{"metadata":{"finalizers":["e2e.example.org/x"]}}`, "may make no volume with a finalizer but"},
		{"accessible from everywhere", `{"spec":{"nodeAffinity":null}}`, "only that is in one of the driver's pools"},
		{"where another label says", `{"spec":{"nodeAffinity":{"required":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"kubernetes.io/hostname","operator":"In","values":["node2"]}]}]}}}}`, "only that is in one of the driver's pools"},
		{"of a host", `{"spec":{"csi":null,"hostPath":{"path":"/"}}}`, "volumes of " + driver + " only"},
		{"of another driver", `{"spec":{"csi":{"driver":"other.example.org"}}}`, "volumes of " + driver + " only"},
		{"with controllerPublishSecretRef", secretRef("controllerPublishSecretRef"), "refers to a Secret"},
		{"with nodeStageSecretRef", secretRef("nodeStageSecretRef"), "refers to a Secret"},
		{"with nodePublishSecretRef", secretRef("nodePublishSecretRef"), "refers to a Secret"},
		{"with controllerExpandSecretRef", secretRef("controllerExpandSecretRef"), "refers to a Secret"},
		{"with nodeExpandSecretRef", secretRef("nodeExpandSecretRef"), "refers to a Secret"},
	} {
		object := w.parse(volumeText, "pvc-"+uid, driver, "open", uid, pool1, "Delete")
		var patch map[string]any
		no(t, json.Unmarshal([]byte(s.patch), &patch))
		merge(object, patch)
		_, err := volumes.objects(attacker, "").Create(ctx, &unstructured.Unstructured{Object: object}, metav1.CreateOptions{DryRun: dry})
		s.judge(t, err)
	}
	volume := w.put(volumes, "", volumeText, "pvc-"+uid, driver, "gone", uid, pool2, "Retain")
	const grows = "its capacity, which grows"
	try(t, volumes, volume,
		step{"larger", `{"spec":{"capacity":{"storage":"1Gi"}}}`, ""},
		step{"smaller", `{"spec":{"capacity":{"storage":"1Mi"}}}`, grows},
		step{"to be deleted", `{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`, grows},
		step{"with a Secret", secretRef("controllerExpandSecretRef"), grows})
}

// secretRef makes a volume refer to a Secret, which the kubelet of the volume's node could then read.
func secretRef(field string) string {
	return fmt.Sprintf(`{"spec":{"csi":{%q:{"namespace":"kube-system","name":"x"}}}}`, field)
}

// TestPoolsOfOthers checks that a driver that takes a Pool has to name the previous owner, so that this one
// can take it back.
func TestPoolsOfOthers(t *testing.T) {
	w := newWorld(t)
	const own, names = "may change nothing of what is on node", "has to name it in the annotation"
	text := func(node, from string) string {
		value := "null"
		if from != "" {
			value = fmt.Sprintf("%q", from)
		}
		return fmt.Sprintf(`{"metadata":{"annotations":{%q:%s}},"spec":{"nodeName":%q}}`, takenFromKey, value, node)
	}
	for i, c := range []struct {
		node, from string // of the Pool before
		steps      []step
	}{
		{theirs, "", []step{
			{"taken", text(mine, ""), names}, {"taken, another named", text(mine, "node3"), names}, {"taken, itself named", text(mine, mine), names},
			{"taken, the other named", text(mine, theirs), ""}, {"let go", text("", ""), own}, {"given to a third", text("node3", theirs), own},
			{"named to be taken back", text(theirs, mine), own},
		}},
		{theirs, "node3", []step{{"taken", text(mine, theirs), ""}, {"taken, the first named", text(mine, "node3"), names}, {"nobody named any more", text(theirs, ""), own}}},
		{theirs, mine, []step{{"taken back", text(mine, ""), ""}, {"taken again", text(mine, theirs), ""}, {"given up", text(theirs, ""), ""}, {"given up for another", text(theirs, "node3"), own}}},
		{mine, theirs, []step{
			{"nobody named any more", text(mine, ""), names}, {"another named", text(mine, "node3"), names},
			{"let go", text("", theirs), ""}, {"let go, nobody named", text("", ""), names}, {"given to a third", text("node3", theirs), own},
		}},
		{"", theirs, []step{{"taken", text(mine, theirs), ""}, {"taken, nobody named", text(mine, ""), names}}},
		{"", mine, []step{{"taken", text(mine, ""), ""}}},
		{"", "", []step{{"taken", text(mine, ""), ""}, {"taken for another", text(theirs, ""), own}}},
	} {
		annotation := "e2e.example.org/have: x"
		if c.from != "" {
			annotation = takenFromKey + ": " + c.from
		}
		pool := w.put(pools, "", poolText+poolStatus, fmt.Sprintf("77777777-7777-4777-8777-00000000000%d", i), c.node, annotation)
		for j := range c.steps {
			c.steps[j].what = fmt.Sprintf("of node %q, from %q: %s", c.node, c.from, c.steps[j].what)
		}
		try(t, pools, pool, c.steps...)
	}
	try(t, subvolumes, w.put(subvolumes, "", subvolumeText+subvolumeStatus, "pvc-finding-6", theirs, pool2, uuidKey+": x"),
		step{"taken, as with its pool", `{"spec":{"nodeName":"node1"}}`, ""},
		step{"taken, with an owner", `{"spec":{"nodeName":"node1"},"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"gone","uid":"x"}]}}`, "may change no metadata"},
		step{"moved away", `{"spec":{"nodeName":"nowhere"}}`, own},
		step{"larger", fmt.Sprintf(`{"spec":{"size":"1Gi"},"metadata":{"annotations":{%q:"x"}}}`, expandRequestKey), ""},
		step{"larger, and more", `{"spec":{"size":"1Gi","pool":"x"}}`, own})
}

// TestClaimsOfOthers checks that a driver cannot change what users wrote into their claims.
func TestClaimsOfOthers(t *testing.T) {
	w := newWorld(t)
	claim := w.turned(claims, w.put(claims, victims, claimText, "finding", provisioner(driver), ""), "phase: Pending")
	const sizes = "may change nothing of a claim's status but its size"
	condition := func(kind string) string {
		return fmt.Sprintf(`{"status":{"conditions":[{"type":%q,"status":"True"}]}}`, kind)
	}
	try(t, claimsStatus, claim,
		step{"resizing", condition("Resizing"), ""},
		step{"anything else", condition("Unused"), sizes},
		step{"what is granted", `{"status":{"allocatedResources":{"storage":"1Gi"},"allocatedResourceStatuses":{"storage":"ControllerResizeInProgress"}}}`, ""},
		step{"its phase", `{"status":{"phase":"Lost"}}`, sizes})
	try(t, claims, claim,
		step{"for its own node", fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, selectedNode, mine), ""},
		step{"for another node", fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, selectedNode, theirs), "may select that node only"})
}

// TestFreeSpaceOfOthers checks that a driver can report the space of its own pools only.
func TestFreeSpaceOfOthers(t *testing.T) {
	w := newWorld(t)
	for _, s := range []step{
		{"of everywhere, and none", `{"nodeTopology":{"matchLabels":null},"capacity":"0"}`, ""},
		{"of everywhere", `{"nodeTopology":{"matchLabels":null}}`, "free space of its pools only"},
		{"of another driver", `{"metadata":{"labels":{"csi.storage.k8s.io/drivername":"other.example.org"}}}`, "metadata that the provisioner sets"},
		{"in the name of another node", `{"metadata":{"labels":{"csi.storage.k8s.io/managed-by":"external-provisioner-node2"}}}`, "of that node only"},
	} {
		object := w.parse(capacityText, "csisc-finding", mine, pool1, snapUID)
		var patch map[string]any
		no(t, json.Unmarshal([]byte(s.patch), &patch))
		merge(object, patch)
		_, err := capacities.objects(attacker, namespace).Create(ctx, &unstructured.Unstructured{Object: object}, metav1.CreateOptions{DryRun: dry})
		s.judge(t, err)
	}
}

// merge applies a merge patch.
func merge(object, patch map[string]any) {
	for key, value := range patch {
		inner, ok := value.(map[string]any)
		if !ok {
			if value == nil {
				delete(object, key)
			} else {
				object[key] = value
			}
			continue
		}
		below, ok := object[key].(map[string]any)
		if !ok {
			below = map[string]any{}
			object[key] = below
		}
		merge(below, inner)
	}
}
