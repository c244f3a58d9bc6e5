//go:build e2e

package policies

import (
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
)

// change is a change of one field of an object.
type change struct {
	what string // "add", "change" or "remove", and the path of the field
	make func(object map[string]any)
}

const (
	pool1, pool2, pool3 = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222", "33333333-3333-4333-8333-333333333333"
	topology            = "topology." + driver + "/"
	managedBy           = "snapshot.storage.kubernetes.io/managed-by"
	selectedNode        = "volume.kubernetes.io/selected-node"
	provisionedBy       = "pv.kubernetes.io/provisioned-by"
	storageProvisioner  = "volume.kubernetes.io/storage-provisioner"
	expanded            = "volume.kubernetes.io/node-expansion-not-required"
	beingCreated        = "snapshot.storage.kubernetes.io/volumesnapshot-being-created"
	beingDeleted        = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"
	volumeFinalizer     = "external-provisioner.volume.kubernetes.io/finalizer"
	cloneFinalizer      = "provisioner.storage.kubernetes.io/cloning-protection"
	sourceFinalizer     = "provisioner.storage.kubernetes.io/volumesnapshot-as-source-protection"
	groupBeingDeleted   = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-deleted"
	groupFinalizer      = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshotcontent-bound-protection"
	contentFinalizer    = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"
)

// These are annotations of the driver; see api/v1alpha1/annotations.go.
const (
	parentKey                 = driver + "/parent"
	uuidKey                   = driver + "/uuid"
	parentUUIDKey             = driver + "/parent-uuid"
	receivedUUIDKey           = driver + "/received-uuid"
	subvolumeIDKey            = driver + "/subvolume-id"
	transidKey                = driver + "/created-transid"
	requestedByKey            = driver + "/requested-by"
	expandRequestKey          = driver + "/expand-request"
	objectKey                 = driver + "/object"
	orphanedSinceKey          = driver + "/orphaned-since"
	markedForDeletionSinceKey = driver + "/marked-for-deletion-since"
	takenFromKey              = driver + "/taken-from"
)

var lineage = []string{parentKey, uuidKey, parentUUIDKey, receivedUUIDKey, subvolumeIDKey, transidKey}

// known are annotations, labels and finalizers with a meaning for the driver, a sidecar or Kubernetes.
var known = map[string]map[string]string{
	"annotations": {
		"e2e.example.org/x": "y", driver + "/x": "y",
		selectedNode: mine, provisionedBy: driver, storageProvisioner: driver, expanded: "true", beingCreated: "yes", beingDeleted: "yes", groupBeingDeleted: "yes",
		"pv.kubernetes.io/migrated-to":                               "other.example.org",
		"volume.kubernetes.io/provisioner-deletion-secret-name":      "cloud",
		"volume.kubernetes.io/provisioner-deletion-secret-namespace": "kube-system",
		"snapshot.storage.kubernetes.io/deletion-secret-name":        "cloud",
		"snapshot.storage.kubernetes.io/deletion-secret-namespace":   "kube-system",
		"snapshot.storage.kubernetes.io/allow-volume-mode-change":    "true",
		"groupsnapshot.storage.k8s.io/volumeGroupSnapshotHandle":     "x",
		"volume.alpha.kubernetes.io/pre-resize-capacity":             "1Mi",
		parentKey: "x", uuidKey: "x", parentUUIDKey: "x", receivedUUIDKey: "x", subvolumeIDKey: "1", transidKey: "1",
		requestedByKey: "x", expandRequestKey: "x", objectKey: "x", orphanedSinceKey: "x", markedForDeletionSinceKey: "x", takenFromKey: theirs,
	},
	"labels": {
		"e2e.example.org/x": "y", managedBy: mine, topology + pool3: "true", topology + "x": "true",
		"node-role.kubernetes.io/control-plane": "", "csi.storage.k8s.io/drivername": "other.example.org",
	},
}

var knownFinalizers = []string{"e2e.example.org/x", volumeFinalizer, cloneFinalizer, sourceFinalizer, contentFinalizer, groupFinalizer, "kubernetes.io/pv-protection", "kubernetes.io/pvc-protection", "foregroundDeletion"}

// changes returns a change and a removal of every field of an object, and additions to it.
func changes(object map[string]any) (all []change) {
	all = metadataChanges(object)
	for _, field := range slices.Sorted(maps.Keys(object)) {
		if field != "apiVersion" && field != "kind" && field != "metadata" {
			all = append(all, fieldChanges([]any{field}, object[field])...)
		}
	}
	return all
}

func metadataChanges(object map[string]any) (all []change) {
	metadata := object["metadata"].(map[string]any)
	for kind, pairs := range known {
		have, _ := metadata[kind].(map[string]any)
		for key := range have {
			all = append(all, fieldChanges([]any{"metadata", kind, key}, have[key])...)
		}
		for key, value := range pairs {
			if _, ok := have[key]; !ok {
				all = append(all, change{fmt.Sprintf("add metadata.%s.%s", kind, key), set(value, "metadata", kind, key)})
			}
		}
	}
	finalizers, _ := metadata["finalizers"].([]any)
	for _, f := range finalizers {
		others := slices.DeleteFunc(slices.Clone(finalizers), func(o any) bool { return o == f })
		all = append(all, change{"remove metadata.finalizers." + f.(string), set(others, "metadata", "finalizers")})
	}
	for _, f := range knownFinalizers {
		if !slices.Contains(finalizers, any(f)) {
			all = append(all, change{"add metadata.finalizers." + f, set(append(slices.Clone(finalizers), f), "metadata", "finalizers")})
		}
	}
	gone := map[string]any{"apiVersion": "v1", "kind": "Node", "name": "gone", "uid": "99999999-9999-4999-8999-999999999999"}
	if owners, ok := metadata["ownerReferences"].([]any); ok {
		all = append(all, change{"remove metadata.ownerReferences", remove("metadata", "ownerReferences")},
			change{"change metadata.ownerReferences", set([]any{gone}, "metadata", "ownerReferences")},
			change{"add metadata.ownerReferences", set(append(slices.Clone(owners), gone), "metadata", "ownerReferences")})
	} else {
		all = append(all, change{"add metadata.ownerReferences", set([]any{gone}, "metadata", "ownerReferences")})
	}
	if metadata["uid"] == nil {
		name := metadata["name"].(string)
		all = append(all, change{"change metadata.name", set(name[:len(name)-1]+"0", "metadata", "name")})
	}
	return append(all,
		change{"add metadata.generateName", set("csisc-", "metadata", "generateName")},
		change{"add metadata.deletionTimestamp", set(time.Now().UTC().Format(time.RFC3339), "metadata", "deletionTimestamp")},
		change{"add metadata.deletionGracePeriodSeconds", set(int64(1), "metadata", "deletionGracePeriodSeconds")})
}

var (
	isTime = regexp.MustCompile(`^\d{4}-\d\d-\d\dT`)
	isSize = regexp.MustCompile(`^\d+[KMGT]i$`)
	isUUID = regexp.MustCompile(`^[0-9a-f]{8}-`)
)

// fieldChanges returns the changes and removals of a field and of all fields below it.
func fieldChanges(path []any, value any) (all []change) {
	name := strings.ReplaceAll(strings.Trim(fmt.Sprintf("%v", path), "[]"), " ", ".")
	changed := func(to any) {
		all = append(all, change{"change " + name, set(to, path...)})
	}
	switch v := value.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			all = append(all, fieldChanges(append(slices.Clone(path), key), v[key])...)
		}
		all = append(all, change{"add " + name, set("x", append(slices.Clone(path), "e2e")...)})
	case []any:
		for i := range v {
			all = append(all, fieldChanges(append(slices.Clone(path), i), v[i])...)
		}
		if len(v) > 0 {
			all = append(all, change{"add " + name, set(append(slices.Clone(v), differing(v[0])), path...)})
		}
	case bool:
		changed(!v)
	case int64:
		changed(v + 1)
	case float64:
		changed(v + 1)
	case string:
		changed(otherThan(v))
	}
	if _, inList := path[len(path)-1].(int); !inList {
		all = append(all, change{"remove " + name, remove(path...)})
	}
	return all
}

// otherThan returns another valid value of the same form. A value that the API server would refuse by itself
// proves nothing.
func otherThan(v string) string {
	switch {
	case isTime.MatchString(v):
		return strings.Replace(v, v[:4], "2001", 1)
	case isSize.MatchString(v):
		q := resource.MustParse(v)
		q.Add(q)
		return q.String()
	case isUUID.MatchString(v):
		return "88888888" + v[8:]
	case v == "true":
		return "false"
	case slices.Contains([]string{"Delete", "Retain"}, v):
		return map[string]string{"Delete": "Retain", "Retain": "Delete"}[v]
	case slices.Contains([]string{"Volume", "Snapshot"}, v):
		return map[string]string{"Volume": "Snapshot", "Snapshot": "Volume"}[v]
	}
	return v + "x"
}

// differing returns another element of a list.
func differing(element any) any {
	switch v := element.(type) {
	case string:
		return otherThan(v)
	case map[string]any:
		other := runtime.DeepCopyJSON(v)
		for key, value := range other {
			if text, ok := value.(string); ok {
				other[key] = otherThan(text)
			}
		}
		return other
	}
	return element
}

// set writes a value at a path of field names and indexes.
func set(value any, path ...any) func(map[string]any) {
	return func(object map[string]any) {
		var at any = object
		for i, step := range path {
			last := i == len(path)-1
			switch step := step.(type) {
			case int:
				list := at.([]any)
				if last {
					list[step] = value
				}
				at = list[step]
			case string:
				fields := at.(map[string]any)
				if last {
					fields[step] = value
					return
				}
				if fields[step] == nil {
					fields[step] = map[string]any{}
				}
				at = fields[step]
			}
		}
	}
}

// remove removes the value at a path.
func remove(path ...any) func(map[string]any) {
	return func(object map[string]any) {
		var at any = object
		for _, step := range path[:len(path)-1] {
			switch step := step.(type) {
			case int:
				at = at.([]any)[step]
			case string:
				at = at.(map[string]any)[step]
			}
		}
		delete(at.(map[string]any), path[len(path)-1].(string))
	}
}

// effective reports whether a change has an effect. The API server sets some fields itself, whatever a client
// writes.
func effective(before, after map[string]any) bool {
	strip := func(object map[string]any) map[string]any {
		object = runtime.DeepCopyJSON(object)
		for _, field := range []string{"managedFields", "resourceVersion", "generation", "uid", "creationTimestamp"} {
			delete(object["metadata"].(map[string]any), field)
		}
		return object
	}
	return !reflect.DeepEqual(strip(before), strip(after))
}
