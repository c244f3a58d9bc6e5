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
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// emptyNode is a node without pools.
type emptyNode struct{ cluster.Node }

func (emptyNode) Pools(context.Context) []node.Pool { return nil }

func (emptyNode) Away(context.Context) []string { return nil }

func (emptyNode) Walk(context.Context, meta.Class, func(meta.Entry) bool) error { return nil }

func (emptyNode) Exclude(map[string]error) {}

// emptyCluster is an API server without objects and events.
func emptyCluster(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	switch {
	case query.Has("sendInitialEvents"): // it does not support the newer way to list
		w.WriteHeader(http.StatusUnprocessableEntity)
	case query.Has("watch"):
		<-r.Context().Done()
	default:
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"metadata":{"resourceVersion":"1"},"items":[]}`))
	}
}

// TestPublishedMetric: the alert on the metric must also fire if nothing was ever
// published.
func TestPublishedMetric(t *testing.T) {
	const name, started = "btrfs_csi_mirror_last_success_timestamp_seconds ", "1e+06"
	for _, c := range []struct {
		name      string
		cluster   http.HandlerFunc // nil: no cluster
		published bool
	}{
		{name: "without a cluster"},
		{name: "without rights", cluster: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }},
		{name: "published", cluster: emptyCluster, published: true},
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
			m := runManager(t, c.cluster)
			metrics.cluster.Store(m)
			if !c.published {
				if got := value(); got != started {
					t.Errorf("want %s, got %s", started, got)
				}
				return
			}
			ctx, cancel := context.WithTimeout(t.Context(), btrfstest.Patience)
			defer cancel()
			for value() == started && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
			if got := value(); got == started || got == "" {
				t.Errorf("want a time of now, got %s", got)
			}
		})
	}
}

// scrape returns the metrics as Prometheus gets them.
func scrape(t *testing.T, m *metrics) string {
	t.Helper()
	answer := httptest.NewRecorder()
	m.handler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	return answer.Body.String()
}

// runManager runs the controllers of a node until the test ends.
func runManager(t *testing.T, api http.HandlerFunc) *cluster.Manager {
	t.Helper()
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	clients, err := client.Connect(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	m := cluster.New(clients, client.Identity{NodeName: "node-1", Driver: "btrfs-csi.github.io", TopologyPrefix: "topology/", TopologyValue: "here"}, emptyNode{}, cluster.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { m.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return m
}
