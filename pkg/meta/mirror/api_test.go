package mirror

import (
	"context"
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

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// Paths of the API.
const (
	persistentVolumes = "/api/v1/persistentvolumes"
	nodeObjects       = "/api/v1/nodes"
	contentObjects    = "/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents"
	subvolumeObjects  = "/apis/btrfs-csi.github.io/v1alpha1/subvolumes"
	poolObjects       = "/apis/btrfs-csi.github.io/v1alpha1/pools"
)

// fakeAPI is an API server that keeps objects, and knows what of each write a
// real one takes. Nobody can watch it.
type fakeAPI struct {
	mu      sync.Mutex
	objects map[string]map[string]any // by path
	version int
	reads   int
	writes  []string        // method and path
	refuses map[string]bool // paths of which nothing can be read or written
}

func newFakeAPI(t *testing.T) (*fakeAPI, *Clients) {
	t.Helper()
	api := &fakeAPI{objects: map[string]map[string]any{}, refuses: map[string]bool{}}
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	clients, err := Connect(&rest.Config{Host: server.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	return api, clients
}

// nowhere returns clients of no API server, which take no part in a bubble.
func nowhere(t *testing.T) *Clients {
	t.Helper()
	clients, err := Connect(&rest.Config{Host: "http://nowhere.invalid"})
	if err != nil {
		t.Fatal(err)
	}
	return clients
}

// put has an object be there, which is no write.
func (a *fakeAPI) put(dir string, o metav1.Object) {
	data, _ := json.Marshal(o)
	var object map[string]any
	_ = json.Unmarshal(data, &object)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keep(dir+"/"+o.GetName(), object)
}

func (a *fakeAPI) keep(name string, object map[string]any) {
	a.version++
	metadata := child(object, "metadata")
	metadata["resourceVersion"], metadata["uid"] = strconv.Itoa(a.version), name
	a.objects[name] = object
}

func child(object map[string]any, key string) map[string]any {
	if _, ok := object[key].(map[string]any); !ok {
		object[key] = map[string]any{}
	}
	return object[key].(map[string]any)
}

// written returns what was written since the last time.
func (a *fakeAPI) written() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer func() { a.writes = nil }()
	return a.writes
}

func (a *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	name, ofStatus := strings.CutSuffix(r.URL.Path, "/status")
	if a.refuses[name] || a.refuses[path.Dir(name)] {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	if r.Method == http.MethodGet {
		a.reads++
	} else {
		a.writes = append(a.writes, r.Method+" "+r.URL.Path)
	}
	given := read(r)
	have, ok := a.objects[name]
	switch {
	case r.Method == http.MethodGet && !ok && a.isList(name):
		answer(w, http.StatusOK, map[string]any{"metadata": map[string]any{"resourceVersion": strconv.Itoa(a.version)}, "items": a.selected(name, r.URL.Query().Get("fieldSelector"))})
		return
	case r.Method == http.MethodPost:
		delete(given, "status")
		name += "/" + child(given, "metadata")["name"].(string)
		if _, taken := a.objects[name]; taken {
			answer(w, http.StatusConflict, metav1.Status{Status: metav1.StatusFailure, Code: http.StatusConflict, Reason: metav1.StatusReasonAlreadyExists})
			return
		}
		a.keep(name, given)
	case !ok:
		w.WriteHeader(http.StatusNotFound)
		return
	case r.Method == http.MethodDelete:
		delete(a.objects, name)
		answer(w, http.StatusOK, metav1.Status{Status: metav1.StatusSuccess})
		return
	case r.Method == http.MethodPut && ofStatus:
		changed := maps.Clone(have)
		changed["status"] = given["status"]
		a.keep(name, changed)
	case r.Method == http.MethodPut && !mayClaim(have, given):
		w.WriteHeader(http.StatusForbidden)
		return
	case r.Method == http.MethodPut:
		given["status"] = have["status"]
		a.keep(name, given)
	case r.Method == http.MethodPatch:
		a.keep(name, merge(have, given))
	}
	answer(w, http.StatusOK, a.objects[name])
}

// mayClaim is the policy for Pools: who takes one from another node names that one,
// or was named. A claim is made by the node that is in it.
func mayClaim(have, given map[string]any) bool {
	before, after := child(have, "spec")["nodeName"], child(given, "spec")["nodeName"]
	if path.Dir(child(have, "metadata")["uid"].(string)) != poolObjects || before == "" || after == "" || before == after {
		return true
	}
	from := func(o map[string]any) any {
		return child(child(o, "metadata"), "annotations")[v1alpha1.AnnotationTakenFrom]
	}
	return from(given) == before || from(have) == after
}

// read returns what was sent, as JSON or not.
func read(r *http.Request) (given map[string]any) {
	data, _ := io.ReadAll(r.Body)
	if r.Header.Get("Content-Type") == runtime.ContentTypeProtobuf {
		o, _, _ := serializer.NewCodecFactory(scheme).UniversalDeserializer().Decode(data, nil, nil)
		data, _ = json.Marshal(o)
	}
	_ = json.Unmarshal(data, &given)
	return given
}

func (a *fakeAPI) isList(name string) bool {
	return slices.Contains([]string{persistentVolumes, nodeObjects, contentObjects, subvolumeObjects, poolObjects}, name)
}

// selected returns the objects of a path that a selector of strings in their spec
// matches.
func (a *fakeAPI) selected(dir, selector string) []map[string]any {
	wanted := fields.ParseSelectorOrDie(selector)
	return slices.DeleteFunc(a.within(dir), func(object map[string]any) bool {
		set := fields.Set{}
		for key, value := range child(object, "spec") {
			set["spec."+key], _ = value.(string)
		}
		return !wanted.Matches(set)
	})
}

// under returns the objects of a path.
func (a *fakeAPI) under(dir string) []map[string]any {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.within(dir)
}

func (a *fakeAPI) within(dir string) []map[string]any {
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
			have[key] = merge(child(have, key), value)
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

// fakeNode has what a test says.
type fakeNode struct {
	mu      sync.Mutex // protects what follows
	entries map[meta.Ref]meta.Entry
	pools   []PoolReport
	away    []string // IDs of pools
	denied  map[string]error
	lost    map[meta.Ref]bool
	looked  func(meta.Ref)
	refuses error // to expand
}

func newFakeNode(entries ...meta.Entry) *fakeNode {
	n := &fakeNode{entries: map[meta.Ref]meta.Entry{}}
	for _, e := range entries {
		n.entries[e.Ref()] = e
	}
	return n
}

func (n *fakeNode) Look(_ context.Context, ref meta.Ref) (meta.Entry, State) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.looked != nil {
		n.looked(ref)
	}
	e, ok := n.entries[ref]
	switch {
	case !ok:
		return e, Gone
	case n.lost[ref]:
		e.Lineage = meta.Lineage{}
		return e, Lost
	}
	return e, Ready
}

func (n *fakeNode) Walk(_ context.Context, class meta.Class, fn func(meta.Entry) bool) error {
	for _, ref := range n.refs() {
		if e, state := n.Look(context.Background(), ref); state == Ready && ref.Class == class && !fn(e) {
			return nil
		}
	}
	return nil
}

// refs returns all that is there, in order.
func (n *fakeNode) refs() []meta.Ref {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.SortedFunc(maps.Keys(n.entries), func(a, b meta.Ref) int { return strings.Compare(a.String(), b.String()) })
}

func (n *fakeNode) Used(context.Context, meta.Ref) (int64, bool) { return 4096, true }

func (n *fakeNode) Pools(context.Context) []PoolReport {
	n.mu.Lock()
	defer n.mu.Unlock()
	pools := slices.Clone(n.pools)
	for i := range pools {
		if reason := n.denied[pools[i].ID]; reason != nil {
			pools[i] = PoolReport{Name: pools[i].Name, Message: reason.Error()}
		}
	}
	return pools
}

func (n *fakeNode) Away(context.Context) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.away)
}

func (n *fakeNode) Forget(_ context.Context, poolID string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.away = slices.DeleteFunc(n.away, func(id string) bool { return id == poolID })
}

func (n *fakeNode) Expand(_ context.Context, _ string, size int64) (int64, error) {
	return size, n.refuses
}

func (n *fakeNode) Remove(_ context.Context, ref meta.Ref) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.entries, ref)
	return nil
}

func (n *fakeNode) Deny(reasons map[string]error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.denied = reasons
}

// lab is a mirror that does not run: a test says what its caches hold, and when
// it does what.
type lab struct {
	*testing.T
	*Manager
	api    *fakeAPI
	node   *fakeNode
	events *record.FakeRecorder
}

// newLab returns a mirror of a node "node-1" that holds the pool "pool-1".
func newLab(t *testing.T, node *fakeNode, options Options) *lab {
	t.Helper()
	api, clients := newFakeAPI(t)
	l := newLabOf(t, "node-1", api, clients, node, options)
	l.owner.own(map[string]bool{"pool-1": true})
	return l
}

// newLabOf returns a mirror of a node in a cluster.
func newLabOf(t *testing.T, name string, api *fakeAPI, clients *Clients, node *fakeNode, options Options) *lab {
	t.Helper()
	options.Identity = Identity{NodeName: name, Driver: "btrfs-csi.github.io", TopologyPrefix: "topology.btrfs-csi.github.io/", TopologyValue: "here"}
	m := New(clients, node, options)
	t.Cleanup(func() {
		m.cluster.broadcaster.Shutdown()
		m.subvolumes.queue.ShutDown()
		m.expansion.queue.ShutDown()
		m.placement.queue.ShutDown()
	})
	events := record.NewFakeRecorder(100)
	m.cluster.Events = events
	m.cluster.SnapshotsSynced.Store(true)
	return &lab{T: t, Manager: m, api: api, node: node, events: events}
}

// see brings the caches in line with what the API server has.
func (l *lab) see() {
	l.Helper()
	subvolumes, err := l.cluster.API.Subvolumes().List(l.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + l.cluster.NodeName})
	l.no(err)
	fill(l, l.cluster.Subvolumes, subvolumes.Items)
	volumes, err := l.cluster.API.PersistentVolumes().List(l.Context(), metav1.ListOptions{})
	l.no(err)
	fill(l, l.cluster.PersistentVolumes, volumes.Items)
	contents, err := l.cluster.API.Contents().List(l.Context(), metav1.ListOptions{})
	l.no(err)
	fill(l, l.cluster.Contents, contents.Items)
}

func fill[O any](l *lab, informer cache.SharedIndexInformer, items []O) {
	l.Helper()
	objects := make([]any, 0, len(items))
	for i := range items {
		o, err := Slim(&items[i])
		l.no(err)
		objects = append(objects, o)
	}
	l.no(informer.GetStore().Replace(objects, ""))
}

func (l *lab) no(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

// told returns the Events since the last time.
func (l *lab) told() []string {
	var told []string
	for len(l.events.Events) > 0 {
		told = append(told, <-l.events.Events)
	}
	return told
}
