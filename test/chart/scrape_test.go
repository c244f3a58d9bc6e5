package chart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

func TestMain(m *testing.M) { os.Exit(btrfstest.Main(m.Run)) }

// poolSize is more than a filesystem below the pool's sparse file has left, so that the driver
// says how much that is.
const poolSize = 15 << 40

// labels has the values of each label of a metric.
type labels map[string]map[string]bool

func (l labels) add(name, value string) {
	if l[name] == nil {
		l[name] = map[string]bool{}
	}
	l[name][value] = true
}

// onScrape are the labels that Prometheus adds to every metric of a pod.
var onScrape = []string{"container", "endpoint", "instance", "job", "namespace", "node", "pod"}

// ofOthers are metrics of the kubelet, of kube-state-metrics and of Prometheus, with labels.
var ofOthers = map[string][]string{
	"up":                                   nil,
	"ALERTS":                               {"alertname", "alertstate", "severity", "pool"},
	"kubelet_volume_stats_used_bytes":      {"namespace", "persistentvolumeclaim"},
	"kubelet_volume_stats_capacity_bytes":  {"namespace", "persistentvolumeclaim"},
	"kubelet_volume_stats_available_bytes": {"namespace", "persistentvolumeclaim"},
	"kube_persistentvolumeclaim_info":      {"namespace", "persistentvolumeclaim", "storageclass", "volumename"},
}

// TestMonitoring runs all tests on the metrics of one driver.
func TestMonitoring(t *testing.T) {
	text := scrape(t)
	t.Run("metrics", func(t *testing.T) { lint(t, text) })
	known := metricsOf(t, text)
	t.Run("alerts", func(t *testing.T) { checkAlerts(t, known) })
	t.Run("dashboard", func(t *testing.T) { checkDashboard(t, known) })
}

// lint does what promtool check metrics does.
func lint(t *testing.T, text string) {
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// scrape returns the metrics of a driver that has a pool, another that cannot be used, a volume, a
// snapshot and a cluster, and has refused a request.
func scrape(t *testing.T) string {
	node := testkit.NewNode(t.TempDir())
	node.State = btrfstest.Mount(t, btrfstest.Size(poolSize))
	if err := errors.Join(node.Make(), os.Mkdir(filepath.Join(node.State, "pools", "unmounted"), 0o700)); err != nil { // a fault
		t.Fatal(err)
	}
	binary, address := filepath.Join(t.TempDir(), "btrfs-csi"), freeAddress(t)
	if err := testkit.Build(t.Context(), "../..", binary); err != nil {
		t.Fatal(err)
	}
	driver, err := node.Start(t.Context(), node.Command(binary, "--http="+address, "--quota=none", "--kubernetes", "--kubeconfig="+cluster(t)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := driver.End(os.Interrupt); err != nil {
			t.Error(err)
		}
	})
	use(t, driver)
	var text string
	btrfstest.Eventually(t, "metrics of the cluster", func() bool {
		text = get(t, "http://"+address+"/metrics")
		return strings.Contains(text, "\nbtrfs_csi_orphans{")
	})
	return text
}

func use(t *testing.T, driver *testkit.Driver) {
	ctx := t.Context()
	request := &csi.CreateVolumeRequest{
		Name: "data", VolumeCapabilities: []*csi.VolumeCapability{testkit.Writer}, CapacityRange: &csi.CapacityRange{RequiredBytes: 1 << 20},
	}
	if _, err := driver.CreateVolume(ctx, request); err != nil {
		t.Fatal(err)
	}
	if _, err := driver.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "snap", SourceVolumeId: "data"}); err != nil {
		t.Fatal(err)
	}
	request.CapacityRange.RequiredBytes = 2 << 20
	if _, err := driver.CreateVolume(ctx, request); err == nil {
		t.Fatal("a volume was made twice, in two sizes")
	}
}

// cluster returns a kubeconfig of an API server.
func cluster(t *testing.T) string {
	api := clustertest.Empty()
	api.Put(clustertest.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: testkit.NodeID}})
	server := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "api" },
		Transport: api, FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0), // it complains of watches that end
	})
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: a, clusters: [{name: a, cluster: {server: %q}}],
		contexts: [{name: a, context: {cluster: a, user: a}}], users: [{name: a, user: {}}]}`, server.URL)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func freeAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func get(t *testing.T, url string) string {
	request, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v: %s", url, response.Status, err, body)
	}
	return string(body)
}

// metricsOf returns the series that a scrape makes, and those of others, with their labels.
func metricsOf(t *testing.T, text string) map[string]labels {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader([]byte(text)))
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]labels{}
	for name, family := range families {
		for _, series := range seriesOf(name, family.GetType()) {
			of := labels{}
			for _, label := range onScrape {
				of.add(label, "")
			}
			if strings.HasSuffix(series, "_bucket") {
				of.add("le", "")
			}
			for _, metric := range family.GetMetric() {
				for _, pair := range metric.GetLabel() {
					of.add(pair.GetName(), pair.GetValue())
				}
			}
			known[series] = of
		}
	}
	for _, problem := range []pool.Problem{pool.Silent, pool.Unusable, pool.ReadOnly, pool.DeviceMissing, pool.BackingFull, pool.MetadataFull, pool.QuotaInconsistent, pool.DeviceErrors} {
		known["btrfs_csi_pool_condition"].add("condition", string(problem)) // only those that a pool has are scraped
	}
	for name, names := range ofOthers {
		known[name] = labels{}
		for _, label := range slices.Concat(onScrape, names) {
			known[name].add(label, "")
		}
	}
	return known
}

func seriesOf(name string, kind dto.MetricType) []string {
	switch kind {
	case dto.MetricType_HISTOGRAM:
		return []string{name + "_bucket", name + "_sum", name + "_count"}
	case dto.MetricType_SUMMARY:
		return []string{name, name + "_sum", name + "_count"}
	}
	return []string{name}
}
