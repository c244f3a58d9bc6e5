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

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/node"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
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

// TestPoolMetrics: the alerts for space compare metrics that agree with what the driver creates.
func TestPoolMetrics(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		name   string
		status pool.Status
		want   map[string]float64
	}{
		{"roomy", pool.Status{Space: btrfs.Space{Room: btrfs.Room{Size: 10000 * mib, Available: 5000 * mib, Metadata: 500 * mib}}},
			map[string]float64{"capacity_bytes": 4900 * mib, "metadata_available_bytes": 500 * mib, "metadata_headroom_bytes": 64 * mib}},
		{"without metadata", pool.Status{Space: btrfs.Space{Room: btrfs.Room{Size: 1024 * mib, Available: 500 * mib, Metadata: 31 * mib}}},
			map[string]float64{"capacity_bytes": 0, "metadata_available_bytes": 31 * mib, "metadata_headroom_bytes": 32 * mib, "condition MetadataFull": 1}},
		{"at the headroom", pool.Status{Space: btrfs.Space{Room: btrfs.Room{Size: 1024 * mib, Available: 64 * mib, Metadata: 33 * mib}}},
			map[string]float64{"capacity_bytes": 0}},
		{"read-only", pool.Status{Space: btrfs.Space{Room: btrfs.Room{Size: 1024 * mib, Available: 500 * mib, Metadata: 33 * mib, ReadOnly: true}}},
			map[string]float64{"capacity_bytes": 0, "condition ReadOnly": 1}},
		{"silent", pool.Status{Silent: true, Error: "its disk does not answer"},
			map[string]float64{"usable": 0, "condition Silent": 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := gather(t, c.status)
			for name, want := range c.want {
				if value, ok := got[name]; !ok || value != want {
					t.Errorf("%s is %v, %v, want %v", name, value, ok, want)
				}
			}
			conditions := 0
			for name := range got {
				if strings.HasPrefix(name, "condition ") {
					conditions++
				}
			}
			if conditions != len(c.status.Conditions()) {
				t.Errorf("%d conditions, want %d: %v", conditions, len(c.status.Conditions()), got)
			}
		})
	}
}

// gather returns the metrics of a pool by name, without their prefix; conditions with theirs.
func gather(t *testing.T, status pool.Status) map[string]float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(collected(func(ch chan<- prometheus.Metric) { collectPool(ch, status) }))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, family := range families {
		name := strings.TrimPrefix(family.GetName(), "btrfs_csi_pool_")
		for _, m := range family.GetMetric() {
			key := name
			for _, label := range m.GetLabel() {
				if label.GetName() == "condition" {
					key += " " + label.GetValue()
				}
			}
			all[key] = m.GetGauge().GetValue()
		}
	}
	return all
}

type collected func(chan<- prometheus.Metric)

func (c collected) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }
func (c collected) Collect(ch chan<- prometheus.Metric) { c(ch) }

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
