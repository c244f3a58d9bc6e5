package main

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/codes"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/orphans"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// metrics collects the metrics for Prometheus. It reads the state of pools at each scrape, at a
// cost that does not depend on the number of volumes, but for counting them in the index.
type metrics struct {
	registry   *prometheus.Registry
	started    time.Time
	operations *prometheus.HistogramVec
	engine     *atomic.Pointer[snapshot.Engine]
	cluster    atomic.Pointer[cluster.Manager] // nil without a cluster
}

func newMetrics(engine *atomic.Pointer[snapshot.Engine]) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		started:  time.Now(),
		operations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "btrfs_csi_operation_duration_seconds",
			Help:    "Time that CSI requests took, by method and grpc code.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}, []string{"method", "code"}),
		engine: engine,
	}
	m.registry.MustRegister(m.operations, m,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// mostScrapes limits concurrent scrapes, since each one reads the state of all pools.
const mostScrapes = 4

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry, MaxRequestsInFlight: mostScrapes})
}

func (m *metrics) observe(method string, code codes.Code, d time.Duration) {
	m.operations.WithLabelValues(method, code.String()).Observe(d.Seconds())
}

func poolMetric(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("btrfs_csi_pool_"+name, help, append([]string{"pool", "pool_id"}, labels...), nil)
}

var (
	descUp            = poolMetric("usable", "1 if the pool is in use, 0 if it cannot be.")
	descSize          = poolMetric("size_bytes", "Size of the pool's filesystem.")
	descAvailable     = poolMetric("available_bytes", "What can still be written to the pool's filesystem.")
	descCapacity      = poolMetric("capacity_bytes", "What new volumes may still get, as GetCapacity reports it: 0 when nothing more is created.")
	descCondition     = poolMetric("condition", "1 for each condition that the pool has, as in the state of its Pool; absent without one.", "condition")
	descBacking       = poolMetric("backing_available_bytes", "What is left in the filesystem of the sparse file that the pool lies in. Only there where that is less than the file may want.")
	descUnallocated   = poolMetric("unallocated_bytes", "Raw bytes that belong to no chunk yet.")
	descMetadataUsed  = poolMetric("metadata_used_bytes", "Metadata in use.")
	descMetadataTotal = poolMetric("metadata_bytes", "Metadata chunks allocated.")
	descMetadataLeft  = poolMetric("metadata_available_bytes", "What metadata can still take.")
	descMetadataFree  = poolMetric("metadata_headroom_bytes", "What has to stay free for metadata: with less nothing more is created.")
	descReadOnly      = poolMetric("read_only", "1 if the pool's filesystem is, or has turned, read-only.")
	descInconsistent  = poolMetric("quota_inconsistent", "1 if sizes are not enforced until a rescan has ended.", "mode")
	descRescans       = poolMetric("quota_rescans_total", "How often the quota was found inconsistent and was rescanned.")
	descVolumes       = poolMetric("volumes", "Volumes in the pool.")
	descSnapshots     = poolMetric("snapshots", "Snapshots in the pool.")
	descNesting       = poolMetric("nesting_volumes", "Volumes in which pods have made subvolumes.")
	descOrphans       = prometheus.NewDesc("btrfs_csi_orphans", "Volumes and snapshots of this node that the cluster knows nothing of, and PersistentVolumes whose volume is missing.", []string{"kind"}, nil)
	descPublished     = prometheus.NewDesc("btrfs_csi_mirror_last_success_timestamp_seconds", "When all pools of this node were last written to the cluster, which is done every 15 seconds; when the driver started, until then.", nil, nil)
	descMissing       = poolMetric("devices_missing", "Devices of the pool that are not there.")
	descDeviceErrors  = poolMetric("device_errors_total", "Error counters of the pool's devices.", "device", "type")
)

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	if e := m.engine.Load(); e != nil {
		counts, err := e.Counts(context.Background())
		for _, p := range e.Pools(context.Background()) {
			collectPool(ch, p)
			if err == nil && counts != nil && p.ID != "" { // they are unknown until a damaged index is rebuilt
				collectCounts(ch, p, counts[p.ID])
			}
		}
	}
	if c := m.cluster.Load(); c != nil {
		m.collectCluster(ch, c)
	}
}

func (m *metrics) collectCluster(ch chan<- prometheus.Metric, c *cluster.Manager) {
	published := c.Published()
	if published.IsZero() { // the alert must fire if the driver never reaches the cluster
		published = m.started
	}
	ch <- prometheus.MustNewConstMetric(descPublished, prometheus.GaugeValue, float64(published.Unix()))
	if found, looked := c.Orphans(); looked { // before that the number is unknown
		collectOrphans(ch, found)
	}
}

func collectOrphans(ch chan<- prometheus.Metric, found []orphans.Orphan) {
	counts := map[string]int{string(meta.Volumes): 0, string(meta.Snapshots): 0, "missing": 0}
	for _, o := range found {
		if o.Missing != "" {
			counts["missing"]++
		} else {
			counts[string(o.Class)]++
		}
	}
	for kind, n := range counts {
		ch <- prometheus.MustNewConstMetric(descOrphans, prometheus.GaugeValue, float64(n), kind)
	}
}

func collectCounts(ch chan<- prometheus.Metric, p pool.Status, counts map[meta.Class]int) {
	for desc, class := range map[*prometheus.Desc]meta.Class{descVolumes: meta.Volumes, descSnapshots: meta.Snapshots} {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(counts[class]), p.Name, p.ID)
	}
}

func collectPool(ch chan<- prometheus.Metric, p pool.Status) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, append([]string{p.Name, p.ID}, labels...)...)
	}
	gauge(descUp, flagValue(p.Error == ""))
	for _, c := range p.Conditions() {
		gauge(descCondition, 1, string(c.Problem))
	}
	if p.Error != "" {
		return
	}
	gauge(descSize, float64(p.Space.Size))
	gauge(descAvailable, float64(p.Space.Available))
	gauge(descCapacity, float64(p.Capacity()))
	if p.Space.Backing != nil {
		gauge(descBacking, float64(p.Space.Backing.Available))
	}
	gauge(descUnallocated, float64(p.Space.Unallocated))
	gauge(descMetadataUsed, float64(p.Space.MetadataUsed))
	gauge(descMetadataTotal, float64(p.Space.MetadataTotal))
	gauge(descMetadataLeft, float64(p.Space.Metadata))
	gauge(descMetadataFree, float64(p.MetadataHeadroom()))
	gauge(descReadOnly, flagValue(p.Space.ReadOnly))
	gauge(descInconsistent, flagValue(p.Quota.Inconsistent), string(p.Quota.Mode))
	gauge(descNesting, float64(p.Nesting))
	ch <- prometheus.MustNewConstMetric(descRescans, prometheus.CounterValue, float64(p.Rescans), p.Name, p.ID)
	gauge(descMissing, float64(p.DevicesMissing()))
	for _, d := range p.Devices {
		name := d.Path
		if d.Missing { // all missing devices have the same path
			name = fmt.Sprintf("missing, ID %d", d.ID)
		}
		for kind, count := range map[string]uint64{
			"write": d.WriteErrors, "read": d.ReadErrors, "flush": d.FlushErrors,
			"corruption": d.CorruptionErrors, "generation": d.GenerationErrors,
		} {
			ch <- prometheus.MustNewConstMetric(descDeviceErrors, prometheus.CounterValue, float64(count), p.Name, p.ID, name, kind)
		}
	}
}

func flagValue(set bool) float64 {
	if set {
		return 1
	}
	return 0
}
