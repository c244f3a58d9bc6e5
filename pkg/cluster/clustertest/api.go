// Package clustertest has a cluster and a node for the tests of controllers.
package clustertest

import (
	"encoding/json"
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
	Subvolumes        = "/apis/btrfs-csi.github.io/v1alpha1/subvolumes"
	Pools             = "/apis/btrfs-csi.github.io/v1alpha1/pools"
)

// kinds are the kinds of what is in a path.
var kinds = map[string]string{
	PersistentVolumes: "PersistentVolume", everywhere(Claims): "PersistentVolumeClaim", Nodes: "Node", Classes: "StorageClass",
	Contents: "VolumeSnapshotContent", Snapshots: "VolumeSnapshot", Subvolumes: "Subvolume", Pools: "Pool",
}

// everywhere returns the path of all namespaces.
func everywhere(dir string) string { return strings.Replace(dir, "/namespaces/db", "", 1) }

// API is an API server that keeps objects, and knows what of each write a
// real one takes.
type API struct {
	mu      sync.Mutex
	objects map[string]map[string]any // by path
	version int
	reads   int
	writes  []string        // method and path
	refuses map[string]bool // paths of which nothing can be read or written
	events  []event         // all of them
	changed chan struct{}   // closed with the next event
}

// NewAPI returns an API server without objects, and clients of it.
func NewAPI(t *testing.T) (*API, *client.Clients) {
	t.Helper()
	api := &API{objects: map[string]map[string]any{}, refuses: map[string]bool{}, changed: make(chan struct{})}
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections) // before: those that watch
	clients, err := client.Connect(&rest.Config{Host: server.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	return api, clients
}

// Nowhere returns clients of no API server, which take no part in a bubble.
func Nowhere(t *testing.T) *client.Clients {
	t.Helper()
	clients, err := client.Connect(&rest.Config{Host: "http://nowhere.invalid"})
	if err != nil {
		t.Fatal(err)
	}
	return clients
}

// Put has an object be there, which is no write.
func (a *API) Put(dir string, o metav1.Object) {
	data, _ := json.Marshal(o)
	var object map[string]any
	_ = json.Unmarshal(data, &object)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keep(dir+"/"+o.GetName(), object)
}

func (a *API) keep(name string, object map[string]any) {
	metadata := Child(object, "metadata")
	metadata["resourceVersion"], metadata["uid"] = strconv.Itoa(a.version+1), name
	before := a.objects[name]
	a.objects[name] = object
	a.note(name, before, object)
}

func (a *API) remove(name string) {
	before := a.objects[name]
	delete(a.objects, name)
	a.note(name, before, nil)
}

// Child returns an object in an object, and makes it where there is none.
func Child(object map[string]any, key string) map[string]any {
	if _, ok := object[key].(map[string]any); !ok {
		object[key] = map[string]any{}
	}
	return object[key].(map[string]any)
}

// Delete has an object not be there, which is no write.
func (a *API) Delete(dir, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.remove(dir + "/" + name)
}

// Refuse refuses to read or write what is in a directory, or no more.
func (a *API) Refuse(dir string, refuses bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuses[dir] = refuses
}

// Reads returns how often something was read.
func (a *API) Reads() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reads
}

// Written returns what was written since the last time.
func (a *API) Written() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer func() { a.writes = nil }()
	return a.writes
}

// ServeHTTP answers as an API server.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("watch") != "" {
		a.watch(w, r)
		return
	}
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
		a.remove(name)
		answer(w, http.StatusOK, metav1.Status{Status: metav1.StatusSuccess})
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
	case name == path.Dir(Snapshots): // the API of snapshots is there
		answer(w, http.StatusOK, map[string]any{})
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (a *API) create(w http.ResponseWriter, r *http.Request) {
	given := read(r)
	delete(given, "status")
	name := r.URL.Path + "/" + Child(given, "metadata")["name"].(string)
	if _, taken := a.objects[name]; taken {
		answer(w, http.StatusConflict, metav1.Status{Status: metav1.StatusFailure, Code: http.StatusConflict, Reason: metav1.StatusReasonAlreadyExists})
		return
	}
	a.keep(name, given)
	answer(w, http.StatusOK, a.objects[name])
}

// change updates or patches an object, or its status alone.
func (a *API) change(w http.ResponseWriter, r *http.Request, name string, have map[string]any) {
	given := read(r)
	version := Child(given, "metadata")["resourceVersion"]
	switch {
	case version != nil && version != "" && version != Child(have, "metadata")["resourceVersion"]:
		answer(w, http.StatusConflict, metav1.Status{Status: metav1.StatusFailure, Code: http.StatusConflict, Reason: metav1.StatusReasonConflict})
		return
	case r.Method == http.MethodPatch:
		given = merge(have, given)
	case name != r.URL.Path: // its status
		changed := maps.Clone(have)
		changed["status"] = given["status"]
		given = changed
	case !mayClaim(have, given):
		w.WriteHeader(http.StatusForbidden)
		return
	default:
		given["status"] = have["status"]
	}
	a.keep(name, given)
	answer(w, http.StatusOK, a.objects[name])
}

// mayClaim is the policy for Pools: who takes one from another node names that one,
// or was named. A claim is made by the node that is in it.
func mayClaim(have, given map[string]any) bool {
	before, after := Child(have, "spec")["nodeName"], Child(given, "spec")["nodeName"]
	if path.Dir(Child(have, "metadata")["uid"].(string)) != Pools || before == "" || after == "" || before == after {
		return true
	}
	from := func(o map[string]any) any {
		return Child(Child(o, "metadata"), "annotations")[v1alpha1.AnnotationTakenFrom]
	}
	return from(given) == before || from(have) == after
}

// read returns what was sent, as JSON or not.
func read(r *http.Request) (given map[string]any) {
	data, _ := io.ReadAll(r.Body)
	if r.Header.Get("Content-Type") == runtime.ContentTypeProtobuf {
		o, _, _ := serializer.NewCodecFactory(scheme()).UniversalDeserializer().Decode(data, nil, nil)
		data, _ = json.Marshal(o)
	}
	_ = json.Unmarshal(data, &given)
	return given
}

// scheme knows the types that are written as protobuf.
func scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	_ = corev1.AddToScheme(s)
	return s
}

// selected returns the objects of a path that a selector matches.
func (a *API) selected(dir, selector string) []map[string]any {
	wanted := fields.ParseSelectorOrDie(selector)
	return slices.DeleteFunc(a.within(dir), func(object map[string]any) bool { return !matches(wanted, object) })
}

// matches reports whether an object is there, and its name and the strings in its spec are
// those of a selector.
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
