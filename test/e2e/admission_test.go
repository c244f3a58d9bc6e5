//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

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

var resources = map[string]schema.GroupVersionResource{
	"nodes":      {Version: "v1", Resource: "nodes"},
	"volumes":    {Version: "v1", Resource: "persistentvolumes"},
	"claims":     {Version: "v1", Resource: "persistentvolumeclaims"},
	"contents":   {Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshotcontents"},
	"subvolumes": {Group: driverName, Version: "v1alpha1", Resource: "subvolumes"},
	"pools":      {Group: driverName, Version: "v1alpha1", Resource: "pools"},
}

// attempt is a change that somebody tries who has the token of a driver.
type attempt struct {
	what      string
	resource  string
	namespace string
	name      string
	patch     string // a merge patch; deletes without one
}

// try makes the change, without it being kept.
func (a attempt) try(client dynamic.Interface) error {
	resource := client.Resource(resources[a.resource]).Namespace(a.namespace)
	dry := []string{metav1.DryRunAll}
	if a.patch == "" {
		return resource.Delete(ctx, a.name, metav1.DeleteOptions{DryRun: dry})
	}
	_, err := resource.Patch(ctx, a.name, types.MergePatchType, []byte(a.patch), metav1.PatchOptions{DryRun: dry})
	return err
}

func annotation(key, value string) string {
	return fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, key, value)
}

func label(key, value string) string {
	return fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, key, value)
}

// Whoever gets hold of the driver on one node can do no harm to what is on another.
func TestTokenOfOneNode(t *testing.T) {
	t.Parallel()
	mine, theirs := lab.Nodes[0], lab.Nodes[1]
	s := newSpace(t)
	handle, content := map[*cluster.Node]string{}, map[*cluster.Node]string{}
	for _, node := range lab.Nodes {
		s.claim(node.Name, selected(node))
		s.snapshot(node.Name, node.Name)
		handle[node] = s.volume(node.Name).Spec.CSI.VolumeHandle
		content[node] = s.content(node.Name).Name
		await(t, lab.subvolumes, handle[node], "be there", func(*v1alpha1.Subvolume) bool { return true })
	}
	s.claim("open", cloneOf("none"))
	const selectedNode = "volume.kubernetes.io/selected-node"
	driver, unbound := asDriver(t, mine), asDriver(t, nil)

	for _, a := range []attempt{
		{"own Subvolume", "subvolumes", "", handle[mine], annotation("x", "y")},
		{"another's Subvolume, larger", "subvolumes", "", handle[theirs], `{"spec":{"size":"1Gi"}}`},
		{"own Pool", "pools", "", poolID(t, mine, "default"), annotation("x", "y")},
		{"own Pool, let go", "pools", "", poolID(t, mine, "default"), `{"spec":{"nodeName":""}}`},
		{"topology of its Node", "nodes", "", mine.Name, label(topologyPrefix+"x", "true")},
		{"claim, for its own node", "claims", s.ns, "open", annotation(selectedNode, mine.Name)},
		{"own content", "contents", "", content[mine], annotation("x", "y")},
		{"PersistentVolume, lineage", "volumes", "", s.volume(theirs.Name).Name, annotation(driverName+"/parent", "y")},
	} {
		t.Run("May/"+a.what, func(t *testing.T) {
			if err := a.try(driver); err != nil {
				t.Error(err)
			}
			refused(t, a.try(unbound))
		})
	}
	for _, a := range []attempt{
		{"another's Subvolume", "subvolumes", "", handle[theirs], annotation("x", "y")},
		{"another's Subvolume, moved away", "subvolumes", "", handle[theirs], `{"spec":{"nodeName":"nowhere"}}`},
		{"another's Subvolume, deleted", "subvolumes", "", handle[theirs], ""},
		{"another's Pool", "pools", "", poolID(t, theirs, "default"), annotation("x", "y")},
		{"another's Pool, let go", "pools", "", poolID(t, theirs, "default"), `{"spec":{"nodeName":""}}`},
		{"another's Pool, deleted", "pools", "", poolID(t, theirs, "default"), ""},
		{"topology of another Node", "nodes", "", theirs.Name, label(topologyPrefix+"x", "true")},
		{"labels of its Node", "nodes", "", mine.Name, label("node-role.kubernetes.io/control-plane", "")},
		{"taints of its Node", "nodes", "", mine.Name, `{"spec":{"taints":[{"key":"x","effect":"NoSchedule"}]}}`},
		{"claim, for another node", "claims", s.ns, "open", annotation(selectedNode, theirs.Name)},
		{"claim, another annotation", "claims", s.ns, "open", annotation("x", "y")},
		{"claim, labels", "claims", s.ns, "open", label("x", "y")},
		{"another's content", "contents", "", content[theirs], annotation("x", "y")},
		{"PersistentVolume, another annotation", "volumes", "", s.volume(theirs.Name).Name, annotation("x", "y")},
		{"PersistentVolume, deleted", "volumes", "", s.volume(mine.Name).Name, ""},
		{"PersistentVolume, its policy", "volumes", "", s.volume(theirs.Name).Name, `{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}`},
	} {
		t.Run("MayNot/"+a.what, func(t *testing.T) {
			refused(t, a.try(driver))
		})
	}
	t.Run("MayNot/PersistentVolume of a host", func(t *testing.T) {
		_, err := driver.Resource(resources["volumes"]).Create(ctx, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "v1", "kind": "PersistentVolume",
			"metadata": map[string]any{"generateName": "e2e-"},
			"spec": map[string]any{
				"capacity": map[string]any{"storage": "1Gi"}, "accessModes": []any{"ReadWriteOnce"},
				"hostPath": map[string]any{"path": "/"},
			},
		}}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		refused(t, err)
	})
}

// refused fails unless something is not allowed: by a policy, or to all drivers.
func refused(t *testing.T, err error) {
	t.Helper()
	if !apierrors.IsForbidden(err) && (err == nil || !strings.Contains(err.Error(), "ValidatingAdmissionPolicy")) {
		t.Errorf("it has to be forbidden; instead: %v", err)
	}
}
