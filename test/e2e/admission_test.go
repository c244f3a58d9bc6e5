//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta/mirror/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
)

// asDriver is the API as the driver on a node reaches it, with the token of its pod; with a
// token of no pod where there is no node.
func asDriver(t *testing.T, node *cluster.Node) dynamic.Interface {
	t.Helper()
	request := &authenticationv1.TokenRequest{}
	if node != nil {
		pod := driverReady(t, node)
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}
	}
	token, err := api().CoreV1().ServiceAccounts(driverNamespace).CreateToken(ctx, release, request, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(lab.RESTConfig())
	config.BearerToken = token.Status.Token
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// kind is one of what the driver may change, by the verb that RBAC has for it.
type kind struct {
	schema.GroupVersionResource
	update bool // instead of patch
}

var resources = map[string]kind{
	"nodes":      {schema.GroupVersionResource{Version: "v1", Resource: "nodes"}, false},
	"volumes":    {schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumes"}, false},
	"claims":     {schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumeclaims"}, false},
	"snapshots":  {schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshots"}, true},
	"contents":   {schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshotcontents"}, false},
	"subvolumes": {schema.GroupVersionResource{Group: driverName, Version: "v1alpha1", Resource: "subvolumes"}, false},
	"pools":      {schema.GroupVersionResource{Group: driverName, Version: "v1alpha1", Resource: "pools"}, true},
}

var dry = []string{metav1.DryRunAll}

// attempt is a change that somebody tries who has the token of a driver.
type attempt struct {
	what      string
	resource  string // by its name above, with a subresource behind a slash
	namespace string
	name      string
	change    change // deletes without one
	because   string // what the policy says that refuses it
}

// try makes the change, without it being kept.
func (a attempt) try(client dynamic.Interface) error {
	resource, subresource, _ := strings.Cut(a.resource, "/")
	kind := resources[resource]
	objects := client.Resource(kind.GroupVersionResource).Namespace(a.namespace)
	if a.change == nil {
		return objects.Delete(ctx, a.name, metav1.DeleteOptions{DryRun: dry})
	}
	administrator, err := dynamic.NewForConfig(lab.RESTConfig())
	if err != nil {
		return err
	}
	// The driver and the controllers write them, too. That is told before a policy is asked.
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		have, err := administrator.Resource(kind.GroupVersionResource).Namespace(a.namespace).Get(ctx, a.name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		patch := a.change(have)
		if kind.update {
			merge(have.Object, patch)
			_, err = objects.Update(ctx, have, metav1.UpdateOptions{DryRun: dry}, subresources(subresource)...)
			return err
		}
		text, err := json.Marshal(patch)
		if err != nil {
			return err
		}
		_, err = objects.Patch(ctx, a.name, types.MergePatchType, text, metav1.PatchOptions{DryRun: dry}, subresources(subresource)...)
		return err
	})
}

// subresources are the arguments for one, which may be none.
func subresources(name string) []string {
	if name == "" {
		return nil
	}
	return []string{name}
}

// change is a merge patch for an object that is there.
type change func(have *unstructured.Unstructured) map[string]any

// set is a change that does not depend on what is there, in JSON.
func set(text string) change {
	var patch map[string]any
	if err := json.Unmarshal([]byte(text), &patch); err != nil {
		panic(fmt.Sprintf("%s: %v", text, err))
	}
	return func(*unstructured.Unstructured) map[string]any { return patch }
}

func annotation(key, value string) change {
	return set(fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, key, value))
}

func label(key, value string) change {
	return set(fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, key, value))
}

// finalizer takes one away, or adds it where it is not there.
func finalizer(name string) change {
	return func(have *unstructured.Unstructured) map[string]any {
		others := []any{}
		for _, f := range have.GetFinalizers() {
			if f != name {
				others = append(others, f)
			}
		}
		if !slices.Contains(have.GetFinalizers(), name) {
			others = append(others, name)
		}
		return map[string]any{"metadata": map[string]any{"finalizers": others}}
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

// create makes an object, without it being kept.
func create(client dynamic.Interface, resource string, object map[string]any) error {
	_, err := client.Resource(resources[resource].GroupVersionResource).
		Create(ctx, &unstructured.Unstructured{Object: object}, metav1.CreateOptions{DryRun: dry})
	return err
}

// volumeOf is the PersistentVolume of a claim as the provisioner makes it, changed.
func volumeOf(claim *corev1.PersistentVolumeClaim, change string) map[string]any {
	name := "pvc-" + string(claim.UID)
	volume := map[string]any{
		"apiVersion": "v1", "kind": "PersistentVolume",
		"metadata": map[string]any{"name": name},
		"spec": map[string]any{
			"capacity": map[string]any{"storage": "64Mi"}, "accessModes": []any{"ReadWriteOnce"},
			"claimRef": map[string]any{"namespace": claim.Namespace, "name": claim.Name, "uid": string(claim.UID)},
			"csi": map[string]any{
				"driver": driverName, "volumeHandle": name, "fsType": "btrfs",
				"volumeAttributes": map[string]any{"x": "y"},
			},
		},
	}
	merge(volume, set(change)(nil))
	return volume
}

// What the policies say, but for the names in it.
const (
	notBound       = "has to be bound to a pod on a node"
	notItsOwn      = "may change nothing of what is on node"
	notItsNode     = "may not change node"
	noNodeLabel    = "may change no labels of a node but"
	onlyNodeLabels = "may change nothing of a node but its labels"
	onlyOurs       = "may make, change and delete volumes of " + driverName + " only"
	notItsClaim    = "for the claim only whose UID is in its name and handle"
	noSecret       = "may make no volume that refers to a Secret"
	notReleased    = "may delete a volume only that is released"
	onlyCapacity   = "may change nothing of a volume's spec but its capacity"
	noVolumeLabel  = "may change no labels and owners of a volume, and no annotations but its own"
	noVolumeFinal  = "may change no finalizer of a volume but"
	onlySelects    = "may change nothing of a claim but the annotation"
	noClaimNote    = "may change no annotation of a claim but"
	selectsItself  = "may select that node only"
	noClaimFinal   = "may change no finalizer of a claim but"
	onlyOurClaims  = "may expand claims of " + driverName + " only"
	onlySizes      = "may change nothing of a claim's status but what tells of its size"
	noStatusMeta   = "may change no metadata of a claim with its status but"
	noSnapshot     = "may change nothing of a snapshot but the finalizer"
	noContentSpec  = "may change snapshots of " + driverName + " only, and nothing of their spec"
	notItsContent  = "may change its own snapshots only"
	notItsHandle   = "may give a snapshot only the handle"
)

// Whoever gets hold of the driver on one node can do no harm to what is on another.
func TestTokenOfOneNode(t *testing.T) {
	t.Parallel()
	mine, theirs := lab.Nodes[0], lab.Nodes[1]
	s := newSpace(t)
	handle, volume := map[*cluster.Node]string{}, map[*cluster.Node]string{}
	content, snapshotHandle := map[*cluster.Node]string{}, map[*cluster.Node]string{}
	pool := map[*cluster.Node]string{}
	for _, node := range lab.Nodes {
		s.claim(node.Name, selected(node))
		s.snapshot(node.Name, node.Name)
		v := s.volume(node.Name)
		handle[node], volume[node] = v.Spec.CSI.VolumeHandle, v.Name
		c := s.content(node.Name)
		content[node], snapshotHandle[node] = c.Name, *c.Status.SnapshotHandle
		pool[node] = poolID(t, node, "default")
		await(t, lab.subvolumes, handle[node], "be there", func(*v1alpha1.Subvolume) bool { return true })
	}
	open := s.claim("open", cloneOf("none"))
	s.claim("foreign", func(c *corev1.PersistentVolumeClaim) {
		c.Annotations["volume.kubernetes.io/storage-provisioner"] = "e2e.example.org"
	})
	const (
		selectedNode = "volume.kubernetes.io/selected-node"
		ownFinalizer = "e2e.example.org/x"
	)
	larger := set(`{"status":{"capacity":{"storage":"1Gi"}}}`)
	driver, unbound := asDriver(t, mine), asDriver(t, nil)

	for _, a := range []attempt{
		{"own Subvolume", "subvolumes", "", handle[mine], annotation("x", "y"), ""},
		{"own Subvolume, its status", "subvolumes/status", "", handle[mine], set(`{"status":{"state":"Lost"}}`), ""},
		{"another's Subvolume, larger", "subvolumes", "", handle[theirs], set(`{"spec":{"size":"1Gi"}}`), ""},
		{"own Pool", "pools", "", pool[mine], annotation("x", "y"), ""},
		{"own Pool, let go", "pools", "", pool[mine], set(`{"spec":{"nodeName":""}}`), ""},
		{"own Pool, its status", "pools/status", "", pool[mine], set(`{"status":{"state":"Away"}}`), ""},
		{"topology of its Node", "nodes", "", mine.Name, label(topologyPrefix+"x", "true"), ""},
		{"claim, for its own node", "claims", s.ns, "open", annotation(selectedNode, mine.Name), ""},
		{"claim, protected while cloned", "claims", s.ns, theirs.Name, finalizer("provisioner.storage.kubernetes.io/cloning-protection"), ""},
		{"claim, the size it shows", "claims/status", s.ns, theirs.Name, larger, ""},
		{"claim, word for the kubelet", "claims/status", s.ns, theirs.Name, annotation("volume.kubernetes.io/node-expansion-not-required", "true"), ""},
		{"snapshot, protected while restored", "snapshots", s.ns, theirs.Name, finalizer("provisioner.storage.kubernetes.io/volumesnapshot-as-source-protection"), ""},
		{"own content", "contents", "", content[mine], annotation("x", "y"), ""},
		{"own content, its status", "contents/status", "", content[mine], set(`{"status":{"readyToUse":false}}`), ""},
		{"PersistentVolume, lineage", "volumes", "", volume[theirs], annotation(driverName+"/parent", "y"), ""},
		{"PersistentVolume, its capacity", "volumes", "", volume[theirs], set(`{"spec":{"capacity":{"storage":"1Gi"}}}`), ""},
		{"PersistentVolume, the provisioner's finalizer", "volumes", "", volume[theirs], finalizer("external-provisioner.volume.kubernetes.io/finalizer"), ""},
	} {
		t.Run("May/"+a.what, func(t *testing.T) {
			if err := a.try(driver); err != nil {
				t.Error(err)
			}
			refused(t, a.try(unbound), notBound)
		})
	}
	for _, a := range []attempt{
		{"another's Subvolume", "subvolumes", "", handle[theirs], annotation("x", "y"), notItsOwn},
		{"another's Subvolume, its status", "subvolumes/status", "", handle[theirs], set(`{"status":{"state":"Lost"}}`), notItsOwn},
		{"another's Subvolume, larger and more", "subvolumes", "", handle[theirs], set(`{"spec":{"size":"1Gi","pool":"x"}}`), notItsOwn},
		{"another's Subvolume, its finalizers", "subvolumes", "", handle[theirs], finalizer(ownFinalizer), notItsOwn},
		{"another's Subvolume, moved away", "subvolumes", "", handle[theirs], set(`{"spec":{"nodeName":"nowhere"}}`), notItsOwn},
		{"another's Subvolume, deleted", "subvolumes", "", handle[theirs], nil, notItsOwn},
		{"another's Pool", "pools", "", pool[theirs], annotation("x", "y"), notItsOwn},
		{"another's Pool, its status", "pools/status", "", pool[theirs], set(`{"status":{"state":"Away"}}`), notItsOwn},
		{"another's Pool, let go", "pools", "", pool[theirs], set(`{"spec":{"nodeName":""}}`), notItsOwn},
		{"topology of another Node", "nodes", "", theirs.Name, label(topologyPrefix+"x", "true"), notItsNode},
		{"labels of its Node", "nodes", "", mine.Name, label("node-role.kubernetes.io/control-plane", ""), noNodeLabel},
		{"taints of its Node", "nodes", "", mine.Name, set(`{"spec":{"taints":[{"key":"x","effect":"NoSchedule"}]}}`), onlyNodeLabels},
		{"finalizers of its Node", "nodes", "", mine.Name, finalizer(ownFinalizer), onlyNodeLabels},
		{"claim, for another node", "claims", s.ns, "open", annotation(selectedNode, theirs.Name), selectsItself},
		{"claim, another annotation", "claims", s.ns, "open", annotation("x", "y"), noClaimNote},
		{"claim, labels", "claims", s.ns, "open", label("x", "y"), onlySelects},
		{"claim, unprotected", "claims", s.ns, theirs.Name, finalizer("kubernetes.io/pvc-protection"), noClaimFinal},
		{"claim, its phase", "claims/status", s.ns, theirs.Name, set(`{"status":{"phase":"Lost"}}`), onlySizes},
		{"claim, an annotation with its status", "claims/status", s.ns, theirs.Name, annotation("x", "y"), noStatusMeta},
		{"claim, labels with its status", "claims/status", s.ns, theirs.Name, label("x", "y"), noStatusMeta},
		{"claim, unprotected with its status", "claims/status", s.ns, theirs.Name, finalizer("kubernetes.io/pvc-protection"), noStatusMeta},
		{"claim of another driver, its size", "claims/status", s.ns, "foreign", larger, onlyOurClaims},
		{"claim of another driver, for its own node", "claims", s.ns, "foreign", annotation(selectedNode, mine.Name), selectsItself},
		{"snapshot, an annotation", "snapshots", s.ns, mine.Name, annotation("x", "y"), noSnapshot},
		{"snapshot, labels", "snapshots", s.ns, mine.Name, label("x", "y"), noSnapshot},
		{"snapshot, another finalizer", "snapshots", s.ns, mine.Name, finalizer(ownFinalizer), noSnapshot},
		{"another's content", "contents", "", content[theirs], annotation("x", "y"), notItsContent},
		{"another's content, its status", "contents/status", "", content[theirs], set(`{"status":{"readyToUse":false}}`), notItsContent},
		{"own content, its policy", "contents", "", content[mine], set(`{"spec":{"deletionPolicy":"Retain"}}`), noContentSpec},
		{"own content, another's handle", "contents/status", "", content[mine],
			set(fmt.Sprintf(`{"status":{"snapshotHandle":%q}}`, snapshotHandle[theirs])), notItsHandle},
		{"PersistentVolume, another annotation", "volumes", "", volume[theirs], annotation("x", "y"), noVolumeLabel},
		{"PersistentVolume, labels", "volumes", "", volume[theirs], label("x", "y"), noVolumeLabel},
		{"PersistentVolume, unprotected", "volumes", "", volume[theirs], finalizer("kubernetes.io/pv-protection"), noVolumeFinal},
		{"PersistentVolume, deleted", "volumes", "", volume[mine], nil, notReleased},
		{"PersistentVolume, its policy", "volumes", "", volume[theirs], set(`{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}`), onlyCapacity},
		{"PersistentVolume, its claim", "volumes", "", volume[theirs], set(fmt.Sprintf(`{"spec":{"claimRef":{"name":"open","uid":%q}}}`, open.UID)), onlyCapacity},
		// The one reference to a Secret that Kubernetes lets one add later.
		{"PersistentVolume, a Secret", "volumes", "", volume[mine],
			set(`{"spec":{"csi":{"controllerExpandSecretRef":{"namespace":"kube-system","name":"x"}}}}`), onlyCapacity},
	} {
		t.Run("MayNot/"+a.what, func(t *testing.T) {
			refused(t, a.try(driver), a.because)
		})
	}
	t.Run("MayNot/another's Pool, deleted", func(t *testing.T) {
		// No driver deletes Pools, so RBAC has no verb for it.
		if err := (attempt{resource: "pools", name: pool[theirs]}).try(driver); !apierrors.IsForbidden(err) {
			t.Errorf("it has to be forbidden; instead: %v", err)
		}
	})

	t.Run("May/PersistentVolume, made", func(t *testing.T) {
		if err := create(driver, "volumes", volumeOf(open, `{}`)); err != nil {
			t.Error(err)
		}
		refused(t, create(unbound, "volumes", volumeOf(open, `{}`)), notBound)
	})
	for what, made := range map[string]struct{ change, because string }{
		"of a host":                       {`{"spec":{"csi":null,"hostPath":{"path":"/"}}}`, onlyOurs},
		"of another driver":               {`{"spec":{"csi":{"driver":"e2e.example.org"}}}`, onlyOurs},
		"of another name":                 {`{"metadata":{"name":"e2e-x"}}`, notItsClaim},
		"of another handle":               {fmt.Sprintf(`{"spec":{"csi":{"volumeHandle":%q}}}`, handle[theirs]), notItsClaim},
		"for another claim":               {`{"spec":{"claimRef":{"uid":"00000000-0000-0000-0000-000000000000"}}}`, notItsClaim},
		"for no claim":                    {`{"spec":{"claimRef":null}}`, notItsClaim},
		"with controllerPublishSecretRef": {secretRef("controllerPublishSecretRef"), noSecret},
		"with nodeStageSecretRef":         {secretRef("nodeStageSecretRef"), noSecret},
		"with nodePublishSecretRef":       {secretRef("nodePublishSecretRef"), noSecret},
		"with controllerExpandSecretRef":  {secretRef("controllerExpandSecretRef"), noSecret},
		"with nodeExpandSecretRef":        {secretRef("nodeExpandSecretRef"), noSecret},
	} {
		t.Run("MayNot/PersistentVolume "+what+", made", func(t *testing.T) {
			refused(t, create(driver, "volumes", volumeOf(open, made.change)), made.because)
		})
	}
	t.Run("MayNot/another's Subvolume, made", func(t *testing.T) {
		refused(t, create(driver, "subvolumes", map[string]any{
			"apiVersion": driverName + "/v1alpha1", "kind": "Subvolume",
			"metadata": map[string]any{"name": "e2e-x"},
			"spec":     map[string]any{"id": "e2e-x", "kind": "Volume", "nodeName": theirs.Name, "pool": "default", "poolID": pool[theirs]},
		}), notItsOwn)
	})
}

// secretRef has a volume refer to a Secret, which the kubelet of its node could read.
func secretRef(field string) string {
	return fmt.Sprintf(`{"spec":{"csi":{%q:{"namespace":"kube-system","name":"x"}}}}`, field)
}

// refused fails unless a policy refuses something, for the reason that is meant: RBAC, which
// knows no nodes, refuses for none of them.
func refused(t *testing.T, err error, because string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), "ValidatingAdmissionPolicy '"+release) || !strings.Contains(err.Error(), because) {
		t.Errorf("a policy has to refuse it and say %q; instead: %v", because, err)
	}
}
