package clustertest

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"path"
	"strconv"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// event is a change of an object. before is nil if it was created, after if it was deleted.
type event struct {
	name          string
	before, after map[string]any
}

// note records an event. Its version is the number of events.
func (a *API) note(name string, before, after map[string]any) {
	a.events = append(a.events, event{name, before, after})
	a.version = len(a.events)
	close(a.changed)
	a.changed = make(chan struct{})
}

// watch streams the events of a path after a version.
func (a *API) watch(r *http.Request) *http.Response {
	query, w := r.URL.Query(), httptest.NewRecorder()
	next, err := strconv.Atoi(query.Get("resourceVersion"))
	if err != nil || query.Get("sendInitialEvents") != "" { // the client has to list first
		answer(w, http.StatusUnprocessableEntity, metav1.Status{Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid})
		return w.Result()
	}
	w.Header().Set("Content-Type", runtime.ContentTypeJSON)
	response := w.Result()
	response.Body = &stream{api: a, dir: r.URL.Path, wanted: fields.ParseSelectorOrDie(query.Get("fieldSelector")), next: next, ended: r.Context().Done(), closed: make(chan struct{})}
	return response
}

// stream is the body of a watch. Read waits for the next event.
type stream struct {
	api    *API
	dir    string
	wanted fields.Selector
	next   int    // the version up to which events were read
	rest   []byte // bytes that were not read yet
	ended  <-chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (s *stream) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		data, seen, changed := s.api.eventsAfter(s.next, s.dir, s.wanted)
		s.rest, s.next = data, seen
		if len(data) > 0 {
			break
		}
		select {
		case <-s.ended:
			return 0, io.ErrUnexpectedEOF
		case <-s.closed:
			return 0, io.EOF
		case <-changed:
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (s *stream) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// eventsAfter returns the events of a path after a version, the last version, and a channel that is
// closed with the next event.
func (a *API) eventsAfter(version int, dir string, wanted fields.Selector) (data []byte, last int, changed <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var buffer bytes.Buffer
	for i, e := range a.events[version:] {
		if !isIn(e.name, dir) {
			continue
		}
		was, is := matches(wanted, e.before), matches(wanted, e.after)
		change := watch.Modified
		object := e.after
		switch {
		case !was && !is:
			continue
		case !was:
			change = watch.Added
		case !is:
			change, object = watch.Deleted, e.before
		}
		_ = json.NewEncoder(&buffer).Encode(map[string]any{"type": change, "object": typed(object, dir, version+i+1)})
	}
	return buffer.Bytes(), len(a.events), a.changed
}

// typed returns an object with its kind and a version.
func typed(object map[string]any, dir string, version int) map[string]any {
	object = maps.Clone(object)
	group := strings.TrimPrefix(path.Dir(dir), "/apis/")
	object["apiVersion"], object["kind"] = strings.TrimPrefix(group, "/api/"), kinds[dir]
	metadata := maps.Clone(Child(object, "metadata"))
	metadata["resourceVersion"] = strconv.Itoa(version)
	object["metadata"] = metadata
	return object
}
