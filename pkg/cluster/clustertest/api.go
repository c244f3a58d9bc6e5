// Package clustertest provides a cluster and a node in memory for the tests of controllers.
package clustertest

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
)

// Paths of the API.
const (
	PersistentVolumes = "/api/v1/persistentvolumes"
	Claims            = "/api/v1/namespaces/db/persistentvolumeclaims"
	Nodes             = "/api/v1/nodes"
	Classes           = "/apis/storage.k8s.io/v1/storageclasses"
	Contents          = "/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents"
	Snapshots         = "/apis/snapshot.storage.k8s.io/v1/volumesnapshots"
	GroupContents     = "/apis/groupsnapshot.storage.k8s.io/v1/volumegroupsnapshotcontents"
	GroupClasses      = "/apis/groupsnapshot.storage.k8s.io/v1/volumegroupsnapshotclasses"
	Subvolumes        = "/apis/btrfs-csi.github.io/v1alpha1/subvolumes"
	Pools             = "/apis/btrfs-csi.github.io/v1alpha1/pools"
)

// kinds are the kinds of the objects in each path.
var kinds = map[string]string{
	PersistentVolumes: "PersistentVolume", everywhere(Claims): "PersistentVolumeClaim", Nodes: "Node", Classes: "StorageClass",
	Contents: "VolumeSnapshotContent", Snapshots: "VolumeSnapshot",
	GroupContents: "VolumeGroupSnapshotContent", GroupClasses: "VolumeGroupSnapshotClass", Subvolumes: "Subvolume", Pools: "Pool",
}

// everywhere returns the path of all namespaces.
func everywhere(dir string) string { return strings.Replace(dir, "/namespaces/db", "", 1) }

// API is an API server that stores objects, and ignores the same parts of a write as a real one.
type API struct {
	mu      sync.Mutex
	objects map[string]map[string]any // by path
	version int
	uids    int // UIDs given so far
	reads   int
	writes  []string        // method and path
	refuses map[string]bool // paths whose objects cannot be read or written
	events  []event         // all of them
	changed chan struct{}   // closed with the next event
}

// NewAPI returns an API server without objects, and clients of it.
func NewAPI(t *testing.T) (*API, *client.Clients) {
	t.Helper()
	api := Empty()
	clients, err := Clients(api)
	if err != nil {
		t.Fatal(err)
	}
	return api, clients
}

// Empty returns an API server without objects.
func Empty() *API {
	return &API{objects: map[string]map[string]any{}, refuses: map[string]bool{}, changed: make(chan struct{})}
}

// Clients returns clients that send their requests to api, without a network.
func Clients(api http.RoundTripper) (*client.Clients, error) {
	return client.Connect(&rest.Config{Host: "http://api", Transport: api, QPS: -1})
}

// Nowhere returns clients of no API server.
func Nowhere(t *testing.T) *client.Clients {
	t.Helper()
	clients, err := client.Connect(&rest.Config{Host: "http://nowhere.invalid"})
	if err != nil {
		t.Fatal(err)
	}
	return clients
}

// Put stores an object. Written does not return it.
func (a *API) Put(dir string, o metav1.Object) {
	data, _ := json.Marshal(o)
	var object map[string]any
	_ = json.Unmarshal(data, &object)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keep(dir+"/"+o.GetName(), object)
}

// keep stores an object.
func (a *API) keep(name string, object map[string]any) {
	before, metadata := a.objects[name], Child(object, "metadata")
	metadata["resourceVersion"] = strconv.Itoa(a.version + 1)
	if before != nil {
		metadata["uid"] = Child(before, "metadata")["uid"]
	} else {
		a.uids++
		metadata["uid"] = fmt.Sprintf("%08x-0000-4000-8000-000000000000", a.uids)
	}
	a.objects[name] = object
	a.note(name, before, object)
}

// replace stores a changed object. It removes a deleted object without finalizers.
func (a *API) replace(name string, object map[string]any) {
	metadata := Child(object, "metadata")
	if finalizers, _ := metadata["finalizers"].([]any); metadata["deletionTimestamp"] != nil && len(finalizers) == 0 {
		a.remove(name)
		return
	}
	a.keep(name, object)
}

func (a *API) remove(name string) {
	before := a.objects[name]
	delete(a.objects, name)
	a.note(name, before, nil)
}

// Child returns a field that is an object, and creates it if it is absent.
func Child(object map[string]any, key string) map[string]any {
	if _, ok := object[key].(map[string]any); !ok {
		object[key] = map[string]any{}
	}
	return object[key].(map[string]any)
}

// Delete removes an object. Written does not return it.
func (a *API) Delete(dir, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.remove(dir + "/" + name)
}

// Refuse makes all requests for a path fail, or succeed again.
func (a *API) Refuse(dir string, refuses bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuses[dir] = refuses
}

// Reads returns the number of reads of a path.
func (a *API) Reads() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reads
}

// Written returns the writes since the last call.
func (a *API) Written() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer func() { a.writes = nil }()
	return a.writes
}

// RoundTrip implements http.RoundTripper. A watch ends with its request, or when its body is closed.
func (a *API) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Query().Get("watch") != "" {
		return a.watch(r), nil
	}
	w := httptest.NewRecorder()
	a.serve(w, r)
	if r.Body != nil {
		_ = r.Body.Close()
	}
	return w.Result(), nil
}

func (a *API) serve(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	name := strings.TrimSuffix(r.URL.Path, "/status")
	if a.refuses[name] || a.refuses[path.Dir(name)] {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	if r.Method == http.MethodGet {
		a.reads++
		a.get(w, r)
		return
	}
	a.writes = append(a.writes, r.Method+" "+r.URL.Path)
	have, ok := a.objects[name]
	switch {
	case r.Method == http.MethodPost:
		a.create(w, r)
	case !ok:
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodDelete:
		a.delete(w, r, name, have)
	default:
		a.change(w, r, name, have)
	}
}

func (a *API) get(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Path
	object, ok := a.objects[name]
	switch {
	case ok:
		answer(w, http.StatusOK, object)
	case kinds[name] != "":
		answer(w, http.StatusOK, map[string]any{"metadata": map[string]any{"resourceVersion": strconv.Itoa(a.version)}, "items": a.selected(name, r.URL.Query().Get("fieldSelector"))})
	case name == path.Dir(Snapshots), name == path.Dir(GroupContents): // the discovery of an API of snapshots
		answer(w, http.StatusOK, map[string]any{})
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (a *API) create(w http.ResponseWriter, r *http.Request) {
	given := read(r)
	delete(given, "status")
	metadata := Child(given, "metadata")
	name := r.URL.Path + "/" + metadata["name"].(string)
	if _, taken := a.objects[name]; taken {
		answer(w, http.StatusConflict, metav1.Status{Status: metav1.StatusFailure, Code: http.StatusConflict, Reason: metav1.StatusReasonAlreadyExists})
		return
	}
	metadata["creationTimestamp"] = metav1.Now()
	a.keep(name, given)
	answer(w, http.StatusOK, a.objects[name])
}

// delete removes an object. If it has finalizers, delete only sets the deletion timestamp.
func (a *API) delete(w http.ResponseWriter, r *http.Request, name string, have map[string]any) {
	wanted := Child(read(r), "preconditions")
	for _, key := range []string{"uid", "resourceVersion"} {
		if wanted[key] != nil && wanted[key] != Child(have, "metadata")[key] {
			conflict(w)
			return
		}
	}
	marked := maps.Clone(have)
	metadata := maps.Clone(Child(have, "metadata"))
	marked["metadata"] = metadata
	if metadata["deletionTimestamp"] == nil {
		metadata["deletionTimestamp"] = metav1.Now()
		a.replace(name, marked)
	}
	answer(w, http.StatusOK, metav1.Status{Status: metav1.StatusSuccess})
}

func conflict(w http.ResponseWriter) {
	answer(w, http.StatusConflict, metav1.Status{Status: metav1.StatusFailure, Code: http.StatusConflict, Reason: metav1.StatusReasonConflict})
}

// change updates or patches an object, or only its status.
func (a *API) change(w http.ResponseWriter, r *http.Request, name string, have map[string]any) {
	given := read(r)
	version := Child(given, "metadata")["resourceVersion"]
	switch {
	case version != nil && version != "" && version != Child(have, "metadata")["resourceVersion"]:
		conflict(w)
		return
	case r.Method == http.MethodPatch:
		given = merge(have, given)
	case name != r.URL.Path: // the status
		changed := maps.Clone(have)
		changed["status"] = given["status"]
		given = changed
	case path.Dir(name) == Pools && !mayTake(have, given):
		w.WriteHeader(http.StatusForbidden)
		return
	default:
		given["status"] = have["status"]
	}
	metadata := maps.Clone(Child(given, "metadata"))
	given["metadata"] = metadata
	for _, key := range []string{"creationTimestamp", "deletionTimestamp"} { // clients cannot write them
		if metadata[key] = Child(have, "metadata")[key]; metadata[key] == nil {
			delete(metadata, key)
		}
	}
	a.replace(name, given)
	answer(w, http.StatusOK, given)
}

// mayTake is the admission policy for Pools: a node that takes a Pool from another must write that
// node into the annotation, or be named there itself.
func mayTake(have, given map[string]any) bool {
	before, after := Child(have, "spec")["nodeName"], Child(given, "spec")["nodeName"]
	if before == "" || after == "" || before == after {
		return true
	}
	from := func(o map[string]any) any {
		return Child(Child(o, "metadata"), "annotations")[v1alpha1.AnnotationTakenFrom]
	}
	return from(given) == before || from(have) == after
}

// read decodes the body of a request, JSON or protobuf.
func read(r *http.Request) (given map[string]any) {
	given = map[string]any{}
	if r.Body == nil {
		return given
	}
	data, _ := io.ReadAll(r.Body)
	if r.Header.Get("Content-Type") == runtime.ContentTypeProtobuf {
		o, _, _ := serializer.NewCodecFactory(scheme()).UniversalDeserializer().Decode(data, nil, nil)
		data, _ = json.Marshal(o)
	}
	_ = json.Unmarshal(data, &given)
	return given
}

// scheme has the types that clients write as protobuf.
func scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	_ = corev1.AddToScheme(s)
	_ = storagev1.AddToScheme(s)
	return s
}

// selected returns the objects of a path that match a selector.
func (a *API) selected(dir, selector string) []map[string]any {
	wanted := fields.ParseSelectorOrDie(selector)
	return slices.DeleteFunc(a.within(dir), func(object map[string]any) bool { return !matches(wanted, object) })
}

// matches reports whether an object exists and its name and spec match a selector.
func matches(wanted fields.Selector, object map[string]any) bool {
	if object == nil {
		return false
	}
	set := fields.Set{}
	set["metadata.name"], _ = Child(object, "metadata")["name"].(string)
	for key, value := range Child(object, "spec") {
		set["spec."+key], _ = value.(string)
	}
	return wanted.Matches(set)
}

// Version returns the number of changes so far.
func (a *API) Version() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.version
}

// Under returns the objects of a path.
func (a *API) Under(dir string) []map[string]any {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.within(dir)
}

func (a *API) within(dir string) []map[string]any {
	items := []map[string]any{}
	for _, name := range slices.Sorted(maps.Keys(a.objects)) {
		if isIn(name, dir) {
			items = append(items, a.objects[name])
		}
	}
	return items
}

func isIn(name, dir string) bool { return path.Dir(name) == dir || everywhere(path.Dir(name)) == dir }

// merge returns have with a merge patch.
func merge(have, patch map[string]any) map[string]any {
	have = maps.Clone(have)
	for key, value := range patch {
		switch value := value.(type) {
		case nil:
			delete(have, key)
		case map[string]any:
			have[key] = merge(Child(have, key), value)
		default:
			have[key] = value
		}
	}
	return have
}

func answer(w http.ResponseWriter, code int, o any) {
	w.Header().Set("Content-Type", runtime.ContentTypeJSON)
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(o)
}
