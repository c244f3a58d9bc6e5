//go:build e2e

package policies

import (
	"encoding/json"
	"path"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/jsonmergepatch"
	"k8s.io/client-go/dynamic"
)

// victim is an object that the attacker changes or makes.
type victim struct {
	what string
	kind
	namespace, name string
	// made is the object that the driver may make, for a victim that does not exist yet.
	made map[string]any
	// may lists the allowed changes as patterns of change.what.
	may []string
	// mayDelete means that the driver may delete it.
	mayDelete bool
}

// kind is a resource. A subresource follows after a slash.
type kind struct {
	schema.GroupVersion
	resource string
}

var (
	coreV1    = schema.GroupVersion{Version: "v1"}
	storageV1 = schema.GroupVersion{Group: "storage.k8s.io", Version: "v1"}
	snapshots = schema.GroupVersion{Group: "snapshot.storage.k8s.io", Version: "v1"}
	groups    = schema.GroupVersion{Group: "groupsnapshot.storage.k8s.io", Version: "v1"}
	elections = schema.GroupVersion{Group: "coordination.k8s.io", Version: "v1"}
	ours      = schema.GroupVersion{Group: driver, Version: "v1alpha1"}
)

// objects returns the objects of a kind, for a client.
func (k kind) objects(as dynamic.Interface, namespace string) dynamic.ResourceInterface {
	resource, _, _ := strings.Cut(k.resource, "/")
	return as.Resource(k.WithResource(resource)).Namespace(namespace)
}

func (k kind) subresources() []string {
	if _, sub, ok := strings.Cut(k.resource, "/"); ok {
		return []string{sub}
	}
	return nil
}

// is reports whether a right is for the victim.
func (v victim) is(r right) bool {
	return r.group == v.Group && r.resource == v.resource && (r.verb == "create") == (v.made != nil)
}

var dry = []string{metav1.DryRunAll}

// attack tries everything on the victim that a verb can do, by dry runs.
func (v victim) attack(t *testing.T, verb string) {
	if verb == "delete" {
		err := v.objects(attacker, v.namespace).Delete(ctx, v.name, metav1.DeleteOptions{DryRun: dry})
		v.judge(t, "delete", err == nil, v.mayDelete, err)
		return
	}
	before := v.made
	if before == nil {
		before = v.get(t)
	}
	if verb == "create" {
		v.makeRoom(t)
		// The driver has to be able to make it. Otherwise a refusal proves nothing.
		_, err := v.write(attacker, verb, before, before)
		v.judge(t, "make", err == nil, true, err)
		_, err = v.write(unbound, verb, before, before)
		v.judge(t, "make, with a token of no pod", err == nil, false, err)
	}
	refused := 0 // by a policy
	count := func(err error) {
		if err != nil && strings.Contains(err.Error(), "ValidatingAdmissionPolicy '"+release) {
			refused++
		}
	}
	for _, c := range changes(before) {
		if v.made == nil {
			before = v.get(t) // Kubernetes changes some fields, too
		}
		changed := runtime.DeepCopyJSON(before)
		c.make(changed)
		after, err := v.write(attacker, verb, before, changed)
		done := err == nil && (verb == "create" || effective(before, after))
		if verb == "create" && done && !effective(v.madeAs(t), after) {
			continue // the API server sets the field itself
		}
		v.judge(t, c.what, done, v.allows(c.what), err)
		count(err)
		if v.allows(c.what) {
			_, err = v.write(unbound, verb, before, changed)
			count(err)
			v.judge(t, c.what+", with a token of no pod", err == nil, false, err)
		}
	}
	if refused == 0 {
		t.Error("no policy has refused anything")
	}
}

// makeRoom removes an object of this name until the end of the test.
func (v victim) makeRoom(t *testing.T) {
	t.Helper()
	objects, name := v.objects(admin, v.namespace), v.made["metadata"].(map[string]any)["name"].(string)
	have, err := objects.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return
	}
	no(t, err)
	no(t, objects.Delete(ctx, name, metav1.DeleteOptions{}))
	t.Cleanup(func() {
		have.SetResourceVersion("")
		have.SetUID("")
		_, err := objects.Create(ctx, have, metav1.CreateOptions{})
		no(t, err)
	})
}

// get returns the present victim.
func (v victim) get(t *testing.T) map[string]any {
	t.Helper()
	object, err := v.objects(admin, v.namespace).Get(ctx, v.name, metav1.GetOptions{})
	no(t, err)
	return object.Object
}

// madeAs returns the object that the API server makes of an unchanged made.
func (v victim) madeAs(t *testing.T) map[string]any {
	t.Helper()
	after, err := v.write(attacker, "create", nil, v.made)
	no(t, err)
	return after
}

// write updates or creates an object by a dry run.
func (v victim) write(as dynamic.Interface, verb string, before, object map[string]any) (map[string]any, error) {
	objects := v.objects(as, v.namespace)
	var after *unstructured.Unstructured
	var err error
	switch verb {
	case "create":
		after, err = objects.Create(ctx, &unstructured.Unstructured{Object: object}, metav1.CreateOptions{DryRun: dry}, v.subresources()...)
	case "update":
		after, err = objects.Update(ctx, &unstructured.Unstructured{Object: object}, metav1.UpdateOptions{DryRun: dry}, v.subresources()...)
	case "patch":
		var patch []byte
		if patch, err = mergePatch(before, object); err == nil {
			after, err = objects.Patch(ctx, v.name, types.MergePatchType, patch, metav1.PatchOptions{DryRun: dry}, v.subresources()...)
		}
	}
	if err != nil {
		return nil, err
	}
	return after.Object, nil
}

func mergePatch(before, after map[string]any) ([]byte, error) {
	was, err := json.Marshal(before)
	if err != nil {
		return nil, err
	}
	is, err := json.Marshal(after)
	if err != nil {
		return nil, err
	}
	return jsonmergepatch.CreateThreeWayJSONMergePatch(was, is, was)
}

// allows reports whether a change is allowed.
func (v victim) allows(what string) bool {
	return slices.ContainsFunc(v.may, func(pattern string) bool {
		ok, err := path.Match(pattern, strings.ReplaceAll(what, "/", "|"))
		return err == nil && ok
	})
}

// judge fails if a change succeeded that is not allowed, or the reverse. A refusal is the error Forbidden,
// Invalid or BadRequest. Any other error is a fault of the test.
func (v victim) judge(t *testing.T, what string, done, may bool, err error) {
	t.Helper()
	switch {
	case done && !may:
		t.Errorf("%s: it is done", what)
	case !done && may:
		t.Errorf("%s: the driver has to be let: %v", what, err)
	case err != nil && !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) && !apierrors.IsBadRequest(err):
		t.Errorf("%s: %v", what, err)
	}
}
