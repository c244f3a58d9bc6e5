//go:build e2e

package e2e

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	snapshotclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
	"github.com/btrfs-csi/btrfs-csi/test/e2e/components"
)

const (
	driverName      = "btrfs-csi.github.io"
	driverNamespace = "btrfs-csi"
	release         = "btrfs-csi"                     // the name of the Helm release, and so of the DaemonSet
	class           = "btrfs"                         // the StorageClass and the VolumeSnapshotClass of the chart
	topologyPrefix  = "topology.btrfs-csi.github.io/" // comes before a pool's ID in a topology key
)

// patience ends a wait. What it waits for takes about a second, and longer on a busy machine.
const patience = 2 * time.Minute

// ctx is the context of all requests. It is not that of a test, so that a test can clean up after its end.
var ctx = context.Background()

// lab is the state that all tests share.
var lab struct {
	*cluster.Cluster
	kubeletDir string
	loopPool   string   // the size of the pool that the driver makes in a file; empty if the cluster has made pools
	quota      string   // the quota mode of the pools
	chart      string   // the directory of the chart
	previous   string   // the directory of the chart to upgrade from
	tag        string   // the tag of the driver's image
	helm       string   // the path of helm
	values     []string // arguments for helm install and upgrade
	snapshots  snapshotclient.Interface
	subvolumes *subvolumesClient
	pools      *poolsClient
}

func TestMain(m *testing.M) {
	os.Exit((&cluster.Lab{Build: components.BuildSuite}).Main(func() int {
		err := setUp()
		code := 0
		if err == nil {
			code = m.Run()
			err = nothingLeft()
		}
		if lab.Cluster != nil {
			err = errors.Join(err, lab.Stop())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "Error:", err)
			return 1
		}
		return code
	}))
}

// setUp starts the cluster and installs the chart.
func setUp() (err error) {
	image := os.Getenv("E2E_IMAGE")
	lab.chart, lab.previous, lab.helm = os.Getenv("E2E_CHART"), os.Getenv("E2E_PREVIOUS_CHART"), os.Getenv("HELM")
	if image == "" || lab.chart == "" || lab.previous == "" || lab.helm == "" {
		return errors.New("E2E_IMAGE (an archive), E2E_CHART and E2E_PREVIOUS_CHART (directories) and HELM (the program) have to be set; make e2e does it")
	}
	if lab.tag, err = tagOf(image); err != nil {
		return fmt.Errorf("E2E_IMAGE: %w", err)
	}
	lab.values = []string{"--namespace", driverNamespace, "--set", "image.tag=" + lab.tag, "--set", "snapshotController.enabled=true"}
	nodes := make([]cluster.NodeOptions, 2)
	if os.Getenv("E2E_NODES") == "1" { // for TestExternalStorage
		nodes = nodes[:1]
	}
	lab.kubeletDir = "/var/lib/kubelet"
	if dir := os.Getenv("E2E_KUBELET_DIR"); dir != "" {
		lab.kubeletDir = dir
		lab.values = append(lab.values, "--set", "kubeletDir="+dir)
	}
	for i := range nodes {
		nodes[i].KubeletDir = lab.kubeletDir
	}
	lab.quota = "full"
	if size := os.Getenv("E2E_LOOP_POOL"); size != "" {
		// With the quota that is not the default.
		lab.loopPool, lab.quota = size, "simple"
		lab.values = append(lab.values, "--set", "loopPoolSize="+size, "--set", "quota="+lab.quota)
		for i := range nodes {
			nodes[i].PoolSize = -1
		}
	}
	if lab.Cluster, err = cluster.Start(ctx, cluster.Options{Nodes: nodes, Images: []string{image}, Log: os.Stderr}); err != nil {
		return err
	}
	if err := connect(lab.RESTConfig()); err != nil {
		return err
	}
	began := time.Now()
	_, err = runHelm(append([]string{"install", release, lab.chart, "--create-namespace", "--wait", "--timeout", "2m"}, lab.values...)...)
	if err == nil {
		fmt.Fprintf(os.Stderr, "the chart was installed in %.1f s\n", time.Since(began).Seconds())
		return nil
	}
	return fmt.Errorf("%w\n%s", err, explain(driverNamespace))
}

// connect creates the clients that kubernetes.Interface does not have.
func connect(config *rest.Config) (err error) {
	if lab.snapshots, err = snapshotclient.NewForConfig(config); err != nil {
		return err
	}
	lab.subvolumes, lab.pools, err = ours(config)
	return err
}

type (
	subvolumesClient = gentype.ClientWithList[*v1alpha1.Subvolume, *v1alpha1.SubvolumeList]
	poolsClient      = gentype.ClientWithList[*v1alpha1.Pool, *v1alpha1.PoolList]
)

// ours returns a client of the driver's custom resources.
func ours(config *rest.Config) (*subvolumesClient, *poolsClient, error) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, nil, err
	}
	config = rest.CopyConfig(config)
	config.APIPath, config.GroupVersion = "/apis", &v1alpha1.GroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, nil, err
	}
	codec := runtime.NewParameterCodec(scheme)
	return gentype.NewClientWithList("subvolumes", client, codec, "",
			func() *v1alpha1.Subvolume { return &v1alpha1.Subvolume{} }, func() *v1alpha1.SubvolumeList { return &v1alpha1.SubvolumeList{} }),
		gentype.NewClientWithList("pools", client, codec, "",
			func() *v1alpha1.Pool { return &v1alpha1.Pool{} }, func() *v1alpha1.PoolList { return &v1alpha1.PoolList{} }), nil
}

// api returns a client of the Kubernetes API.
func api() kubernetes.Interface { return lab.Client() }

// tagOf returns the tag of the image in an archive.
func tagOf(archive string) (string, error) {
	f, err := os.Open(archive)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for files := tar.NewReader(f); ; {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return "", fmt.Errorf("%s has no manifest.json that names the image", archive)
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", archive, err)
		}
		if header.Name != "manifest.json" {
			continue
		}
		var images []struct{ RepoTags []string }
		if err := json.NewDecoder(files).Decode(&images); err != nil || len(images) != 1 || len(images[0].RepoTags) != 1 {
			return "", fmt.Errorf("%s: manifest.json names %v, one image with one name is wanted: %w", archive, images, err)
		}
		_, tag, _ := strings.Cut(images[0].RepoTags[0], ":")
		return tag, nil
	}
}

// runHelm runs helm as an administrator of the cluster.
func runHelm(args ...string) (string, error) { return runTool(lab.helm, args...) }

// helm runs helm and fails the test if it fails.
func helm(t *testing.T, args ...string) string {
	t.Helper()
	return must(t)(runHelm(args...))
}

// kubectl runs kubectl and fails the test if it fails.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return must(t)(runTool(lab.Program("kubectl"), args...))
}

// must fails the test if there is an error, else it returns the value.
func must(t *testing.T) func(string, error) string {
	return func(s string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

// runTool runs a program and returns its stdout. The error contains its stderr.
func runTool(program string, args ...string) (string, error) {
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+lab.Kubeconfig())
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s%s", strings.Join(cmd.Args, " "), err, stderr.String(), out)
	}
	return string(out), err
}

// nothingLeft fails, after all tests, if any volume, snapshot or mount is left.
func nothingLeft() error {
	var errs []error
	for _, node := range lab.Nodes {
		found, err := node.Exec(ctx, "find", "/var/lib/btrfs-csi/pools", "-mindepth", "3", "-maxdepth", "3",
			"(", "-path", "*/active/*", "-o", "-path", "*/committed/*", "-o", "-path", "*/view/*", "-o", "-path", "*/removing/*", ")")
		if err != nil || len(found) > 0 {
			errs = append(errs, fmt.Errorf("after all tests %s has still:\n%s (%w)", node.Name, found, err))
		}
		mounts, err := volumeMounts(node)
		if err != nil || len(mounts) > 0 {
			errs = append(errs, fmt.Errorf("after all tests %s has still mounted:\n%s (%w)", node.Name, strings.Join(mounts, "\n"), err))
		}
	}
	return errors.Join(errs...)
}

// volumeMounts returns the mounts of volumes of the driver on a node, outside of containers.
func volumeMounts(node *cluster.Node) ([]string, error) {
	out, err := node.Exec(ctx, "cat", "/proc/self/mountinfo")
	return slices.DeleteFunc(strings.Split(strings.TrimSpace(string(out)), "\n"), func(line string) bool {
		fields := strings.Fields(line)
		return len(fields) < 5 || !strings.Contains(fields[3], "/active/") && !strings.Contains(fields[3], "/view/")
	}), err
}

// isReady reports whether a pod runs and is ready.
func isReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}
