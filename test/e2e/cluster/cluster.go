package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/btrfs-csi/btrfs-csi/test/e2e/components"
)

// startTimeout is the longest time for the start of a cluster or a node. A start takes about ten seconds,
// or longer on a busy machine.
const startTimeout = 10 * time.Minute

// patience is the longest wait for the kernel, which normally takes a moment.
const patience = 2 * time.Minute

// Options describe a cluster.
type Options struct {
	Nodes  []NodeOptions // nil for two with the defaults; empty for an API server without nodes
	Images []string      // archives to load into every node, besides those of the components
	Log    io.Writer     // gets each step and its time; may be nil
}

// Cluster is a running Kubernetes.
type Cluster struct {
	Nodes []*Node // node1 first

	*state
	components components.Set
	images     []string
	log        *log.Logger
	began      time.Time
	pki        *pki
	config     *rest.Config
	client     *kubernetes.Clientset
	processes  []*process // of the control plane, in the order of their start
}

// Start starts a cluster in the lab of this process, and returns when all nodes are ready and pods can be
// created.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if inside.state == nil {
		return nil, errors.New("a cluster starts in a lab: call cluster.Main from TestMain")
	}
	if o.Nodes == nil {
		o.Nodes = make([]NodeOptions, 2)
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	c := &Cluster{state: inside.state, components: inside.components, log: log.New(o.Log, "", 0), began: time.Now()}
	for _, image := range slices.Concat(c.components.Images, o.Images) {
		path, err := filepath.Abs(image)
		if err != nil {
			return nil, err
		}
		c.images = append(c.images, path)
	}
	for i, options := range o.Nodes {
		c.Nodes = append(c.Nodes, newNode(c, i+1, options))
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start the cluster: %w", err), c.Stop())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	if err := c.makePKI(); err != nil {
		return err
	}
	if err := c.connect(); err != nil {
		return err
	}
	if err := c.makeNetwork(ctx); err != nil {
		return err
	}
	g, starting := errgroup.WithContext(ctx)
	g.Go(func() error { return c.startControlPlane(starting) })
	for _, node := range c.Nodes {
		g.Go(func() error { return node.create(starting) })
	}
	if err := g.Wait(); err != nil || len(c.Nodes) == 0 {
		return err
	}
	return c.waitForServiceAccount(ctx)
}

func (c *Cluster) connect() (err error) {
	if c.config, err = clientcmd.BuildConfigFromFlags("", c.Kubeconfig()); err != nil {
		return err
	}
	// The default of 5 requests a second is for clusters that others use, too.
	c.config.QPS, c.config.Burst = 300, 600
	// All parts of Kubernetes use this format. The API server encodes each event of a watch once for
	// each format in use.
	core := rest.CopyConfig(c.config)
	core.ContentType = runtime.ContentTypeProtobuf
	core.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	c.client, err = kubernetes.NewForConfig(core)
	return err
}

func (c *Cluster) startControlPlane(ctx context.Context) error {
	steps := []struct {
		what string
		do   func(context.Context) error
	}{
		{"etcd is up", c.startEtcd},
		{"the API server is ready", c.startAPIServer},
		{"controller manager and scheduler are started", func(context.Context) error { return c.startControllers() }},
	}
	if len(c.Nodes) == 0 {
		steps = steps[:2]
	}
	for _, step := range steps {
		if err := step.do(ctx); err != nil {
			return err
		}
		c.report("%s", step.what)
	}
	return nil
}

// waitForServiceAccount waits for the default service account, which pods need.
func (c *Cluster) waitForServiceAccount(ctx context.Context) error {
	manager := c.processes[2]
	return manager.ready(ctx, func(ctx context.Context) error {
		_, err := c.client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// report logs a step, with the time since the start.
func (c *Cluster) report(format string, args ...any) {
	c.log.Printf("%6.2f s  %s", time.Since(c.began).Seconds(), fmt.Sprintf(format, args...))
}

// Kubeconfig returns the path of an administrator's kubeconfig. It works in the lab only.
func (c *Cluster) Kubeconfig() string { return c.kubeconfig() }

// Began returns the time at which Start was called.
func (c *Cluster) Began() time.Time { return c.began }

// RESTConfig returns an administrator's access to the API server.
func (c *Cluster) RESTConfig() *rest.Config { return rest.CopyConfig(c.config) }

// Client returns an administrator's client.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// Program returns the path of a program of the components, such as kubectl or ctr.
func (c *Cluster) Program(name string) string { return filepath.Join(c.components.Bin, name) }

// LogDir returns the directory of the logs. It exists as long as the cluster.
func (c *Cluster) LogDir() string { return filepath.Join(c.dir, "log") }

func (c *Cluster) logFile(name string) string { return filepath.Join(c.LogDir(), name+".log") }

// Load loads an archive of images into every node. A node that is off loads it when it starts.
func (c *Cluster) Load(ctx context.Context, archive string) error {
	path, err := filepath.Abs(archive)
	if err != nil {
		return err
	}
	c.images = append(c.images, path)
	for _, node := range c.Nodes {
		if node.Running() {
			err = errors.Join(err, node.load(ctx))
		}
	}
	return err
}

// Stop ends the cluster and everything in it. Start may be called again then.
func (c *Cluster) Stop() error {
	var errs []error
	for _, node := range c.Nodes {
		errs = append(errs, node.discard())
	}
	for i := len(c.processes) - 1; i >= 0; i-- {
		c.processes[i].kill()
	}
	c.processes = nil
	// If the start failed early there may be none.
	_ = run(context.Background(), "ip", "link", "delete", bridge)
	_ = unix.Unmount(filepath.Join(c.dir, "etcd"), unix.MNT_DETACH)
	for _, name := range []string{"etcd", "pki", disksDir, "kubeconfig"} {
		errs = append(errs, os.RemoveAll(filepath.Join(c.dir, name)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop the cluster: %w", err)
	}
	return nil
}

// isReady reports whether a node has reported since a time that it is ready.
func isReady(node *corev1.Node, since time.Time) bool {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue && !condition.LastHeartbeatTime.Time.Before(since)
		}
	}
	return false
}
