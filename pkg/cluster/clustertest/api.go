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
	Nodes             = "/api/v1/nodes"
	Contents          = "/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents"
	Snapshots         = "/apis/snapshot.storage.k8s.io/v1/volumesnapshots"
	Subvolumes        = "/apis/btrfs-csi.github.io/v1alpha1/subvolumes"
	Pools             = "/apis/btrfs-csi.github.io/v1alpha1/pools"
)

// API is an API server that keeps objects, and knows what of each write a
// real one takes. Nobody can watch it.
type API struct {
	mu      sync.Mutex
	objects map[string]map[string]any // by path
	version int
	reads   int
	writes  []string        // method and path
	refuses map[string]bool // paths of which nothing can be read or written
}

// NewAPI returns an API server without objects, and clients of it.
func NewAPI(t *testing.T) (*API, *client.Clients) {
	t.Helper()
	api := &API{objects: map[string]map[string]any{}, refuses: map[string]bool{}}
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
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
	a.version++
	metadata := Child(object, "metadata")
	metadata["resourceVersion"], metadata["uid"] = strconv.Itoa(a.version), name
	a.objects[name] = object
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
	delete(a.objects, dir+"/"+name)
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
		delete(a.objects, name)
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
	case a.isList(name):
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
	switch {
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

func (a *API) isList(name string) bool {
	return slices.Contains([]string{PersistentVolumes, Nodes, Contents, Snapshots, Subvolumes, Pools}, name)
}

// selected returns the objects of a path that a selector of strings in their spec
// matches.
func (a *API) selected(dir, selector string) []map[string]any {
	wanted := fields.ParseSelectorOrDie(selector)
	return slices.DeleteFunc(a.within(dir), func(object map[string]any) bool {
		set := fields.Set{}
		for key, value := range Child(object, "spec") {
			set["spec."+key], _ = value.(string)
		}
		return !wanted.Matches(set)
	})
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
		if path.Dir(name) == dir {
			items = append(items, a.objects[name])
		}
	}
	return items
}

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
