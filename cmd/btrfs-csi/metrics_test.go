package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/mirror"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// emptyNode has no pools.
type emptyNode struct{ mirror.Node }

func (emptyNode) Pools(context.Context) []mirror.PoolReport { return nil }

func (emptyNode) Away(context.Context) []string { return nil }

func (emptyNode) Walk(context.Context, meta.Class, func(meta.Entry) bool) error { return nil }

func (emptyNode) Deny(map[string]error) {}

// emptyCluster is an API server that has nothing, and where nothing happens.
func emptyCluster(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	switch {
	case query.Has("sendInitialEvents"): // a newer way to list, which it does not know
		w.WriteHeader(http.StatusUnprocessableEntity)
	case query.Has("watch"):
		<-r.Context().Done()
	default:
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"metadata":{"resourceVersion":"1"},"items":[]}`))
	}
}

// TestToldMetric: the alert on it has to fire also where the cluster was never told.
func TestToldMetric(t *testing.T) {
	const name, started = "btrfs_csi_mirror_last_success_timestamp_seconds ", "1e+06"
	for _, c := range []struct {
		name    string
		cluster http.HandlerFunc // none without
		told    bool
	}{
		{name: "without a cluster"},
		{name: "without rights", cluster: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }},
		{name: "told", cluster: emptyCluster, told: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var engine atomic.Pointer[snapshot.Engine]
			before := time.Now()
			metrics := newMetrics(&engine)
			if metrics.started.Before(before) || metrics.started.After(time.Now()) {
				t.Errorf("the driver started at %v, want it after %v", metrics.started, before)
			}
			metrics.started = time.Unix(1e6, 0)
			value := func() string {
				for line := range strings.Lines(scrape(t, metrics)) {
					if value, ok := strings.CutPrefix(line, name); ok {
						return strings.TrimSpace(value)
					}
				}
				return ""
			}
			if c.cluster == nil {
				if got := value(); got != "" {
					t.Errorf("got %s", got)
				}
				return
			}
			m := runMirror(t, c.cluster)
			metrics.mirror.Store(m)
			if !c.told {
				if got := value(); got != started {
					t.Errorf("want %s, got %s", started, got)
				}
				return
			}
			ctx, cancel := context.WithTimeout(t.Context(), btrfstest.Patience)
			defer cancel()
			if !m.Claimed(ctx) {
				t.Fatal("the cluster is not told")
			}
			for value() == started && ctx.Err() == nil { // it is noted just after
				time.Sleep(time.Millisecond)
			}
			if got := value(); got == started || got == "" {
				t.Errorf("want a time of now, got %s", got)
			}
		})
	}
}

// scrape returns what Prometheus gets.
func scrape(t *testing.T, m *metrics) string {
	t.Helper()
	answer := httptest.NewRecorder()
	m.handler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	return answer.Body.String()
}

// runMirror runs a mirror into a cluster until the test ends.
func runMirror(t *testing.T, cluster http.HandlerFunc) *mirror.Manager {
	t.Helper()
	server := httptest.NewServer(cluster)
	t.Cleanup(server.Close)
	clients, err := mirror.Connect(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	m := mirror.New(clients, emptyNode{}, mirror.Options{Identity: mirror.Identity{NodeName: "node-1", Driver: "btrfs-csi.github.io", TopologyPrefix: "topology/", TopologyValue: "here"}})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { m.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return m
}
