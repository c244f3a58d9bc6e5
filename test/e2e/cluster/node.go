package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// NodeOptions describe a node.
type NodeOptions struct {
	KubeletDir string // /var/lib/kubelet if empty
	// PoolSize is the size of the pool "default" in bytes. 0 means 10 GiB, a negative size no pool. Its
	// disk is a sparse file.
	PoolSize int64
}

const defaultPoolSize = 10 << 30

// Node is one machine of a cluster. Its methods are not for concurrent use.
type Node struct {
	Name string
	IP   string

	cluster *Cluster
	options NodeOptions
	index   int
	dir     string
	pools   map[string]pool
	loaded  int      // number of images of the cluster that the node has
	boot    boot     // the current or last one
	process *process // nil while the power is off
}

func newNode(c *Cluster, index int, options NodeOptions) *Node {
	if options.KubeletDir == "" {
		options.KubeletDir = "/var/lib/kubelet"
	}
	if options.PoolSize == 0 {
		options.PoolSize = defaultPoolSize
	}
	name := "node" + strconv.Itoa(index)
	return &Node{
		Name: name, IP: nodeIP(index), cluster: c, options: options, index: index,
		dir: filepath.Join(c.dir, name), pools: map[string]pool{},
	}
}

// create makes the files that outlive a reboot, and starts the node.
func (n *Node) create(ctx context.Context) error {
	if err := os.MkdirAll(n.disk(), 0o755); err != nil {
		return err
	}
	// In a shared mount, mounts below it propagate into the node.
	if err := unix.Mount(n.disk(), n.disk(), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", n.disk(), err)
	}
	if err := unix.Mount("", n.disk(), "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share %s: %w", n.disk(), err)
	}
	if err := n.identify(); err != nil {
		return err
	}
	if n.options.PoolSize > 0 {
		disk, err := n.cluster.NewDisk(ctx, n.options.PoolSize)
		if err != nil {
			return err
		}
		if err := n.AddPool(ctx, "default", disk); err != nil {
			return err
		}
	}
	return n.Start(ctx)
}

// identify issues the certificate of the kubelet, as client and server.
func (n *Node) identify() error {
	c := n.cluster
	err := c.pki.issue(identity{
		name: n.Name, user: "system:node:" + n.Name, groups: []string{"system:nodes"},
		ips: []net.IP{net.ParseIP(n.IP)}, hosts: []string{n.Name},
	})
	if err != nil {
		return err
	}
	for from, to := range map[string]string{"ca.crt": "ca.crt", n.Name + ".crt": "kubelet.crt", n.Name + ".key": "kubelet.key"} {
		data, err := os.ReadFile(c.pki.file(from))
		if err == nil {
			err = os.WriteFile(filepath.Join(n.dir, to), data, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return c.pki.kubeconfig(n.Name, filepath.Join(n.dir, "kubeconfig"))
}

// disk returns the directory of the node's own disk.
func (n *Node) disk() string { return filepath.Join(n.dir, "disk") }

// cable returns the lab's end of the network interface of the node.
func (n *Node) cable() string { return "to-" + n.Name }

// logFile returns the path of the log of a service, or with "" of the boot.
func (n *Node) logFile(service string) string {
	return n.cluster.logFile(strings.TrimSuffix(n.Name+"-"+service, "-"))
}

// Running reports whether the power is on.
func (n *Node) Running() bool { return n.process != nil }

// Start turns the power on, and returns when the node is ready. The node has its old disk. The rest of its
// root, and /run, is new.
func (n *Node) Start(ctx context.Context) error {
	if n.Running() {
		return fmt.Errorf("start %s: it is running", n.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for name := range n.pools {
		if err := n.mountPool(ctx, name); err != nil {
			return err
		}
	}
	if err := makeCgroup(n.cluster.cgroup(n.Name)); err != nil {
		return err
	}
	plan, err := n.plan()
	if err != nil {
		return err
	}
	if n.process, err = startProcess(n.Name, n.logFile(""), initCommand(nodeProcess, plan)); err != nil {
		return err
	}
	if err := n.plugIn(ctx); err != nil {
		return err
	}
	if err := n.waitReady(ctx, time.Time{}); err != nil {
		return err
	}
	n.loaded = len(n.cluster.images)
	n.cluster.report("%s is ready", n.Name)
	return nil
}

// plan writes boot.json, and returns its path.
func (n *Node) plan() (string, error) {
	n.boot = boot{
		Name: n.Name, IP: n.IP, ID: uuid.NewString(),
		Dir: n.dir, LogDir: n.cluster.LogDir(), Bin: n.cluster.components.Bin, Images: n.cluster.images[n.loaded:],
		KubeletDir: n.options.KubeletDir, Cgroup: n.cluster.cgroup(n.Name), PodCIDR: nodePodCIDR(n.index),
	}
	for _, other := range n.cluster.Nodes {
		if other != n {
			n.boot.Routes = append(n.boot.Routes, route{nodePodCIDR(other.index), other.IP})
		}
	}
	data, err := json.MarshalIndent(n.boot, "", "  ")
	if err != nil {
		return "", err
	}
	plan := filepath.Join(n.dir, "boot.json")
	return plan, os.WriteFile(plan, data, 0o600)
}

// plugIn connects a booting node to the network.
func (n *Node) plugIn(ctx context.Context) error {
	pid := strconv.Itoa(n.process.cmd.Process.Pid)
	if err := os.WriteFile(n.cluster.nodePidFile(n.Name), []byte(pid), 0o600); err != nil {
		return err
	}
	if err := run(ctx, "ip", "link", "add", n.cable(), "type", "veth", "peer", "name", "eth0", "netns", pid); err != nil {
		return err
	}
	return run(ctx, "ip", "link", "set", n.cable(), "master", bridge, "up")
}

// waitReady waits until the node reports that it is ready, in this boot and since a time.
func (n *Node) waitReady(ctx context.Context, since time.Time) error {
	return n.process.ready(ctx, func(ctx context.Context) error {
		node, err := n.cluster.client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if node.Status.NodeInfo.BootID != n.boot.ID || !isReady(node, since) {
			return fmt.Errorf("the kubelet has not said that the node is ready; the end of %s:\n%s", n.logFile("kubelet"), tail(n.logFile("kubelet")))
		}
		return nil
	})
}

// Kill cuts the power. All processes of the node end at once, and its pools have the state that their disks had
// at that moment. A pool that the driver made in a file is unmounted instead.
func (n *Node) Kill(ctx context.Context) error {
	if !n.Running() {
		return fmt.Errorf("kill %s: it is not running", n.Name)
	}
	n.process.kill()
	n.process = nil
	var errs []error
	for name := range n.pools {
		errs = append(errs, n.cutPool(ctx, name))
	}
	return errors.Join(append(errs, n.cleanUp())...)
}

// cleanUp removes what the kernel keeps of a node after its end.
func (n *Node) cleanUp() error {
	// The kernel removes it with the other end, but only after a while.
	_ = run(context.Background(), "ip", "link", "delete", n.cable())
	_ = os.Remove(n.cluster.nodePidFile(n.Name))
	return errors.Join(detachLoops(n.loopFiles()...), removeCgroups(n.cluster.cgroup(n.Name)))
}

// discard ends the node for good.
func (n *Node) discard() error {
	n.process.kill()
	n.process = nil
	var errs []error
	for name := range n.pools {
		errs = append(errs, n.unmountPool(name))
	}
	errs = append(errs, n.cleanUp())
	_ = unix.Unmount(n.disk(), unix.MNT_DETACH) // it fails if the node has ended before the mount
	return errors.Join(append(errs, os.RemoveAll(n.dir))...)
}

// RestartKubelet ends the kubelet, and returns when the node has started it again and is ready.
func (n *Node) RestartKubelet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	// Times of Kubernetes are in full seconds.
	began := time.Now().Truncate(time.Second).Add(time.Second)
	if _, err := n.Exec(ctx, "sh", "-c", "kill $(cat "+pidFile("kubelet")+")"); err != nil {
		return fmt.Errorf("restart the kubelet: %w", err)
	}
	return n.waitReady(ctx, began)
}

// load loads the images that the node lacks.
func (n *Node) load(ctx context.Context) error {
	for ; n.loaded < len(n.cluster.images); n.loaded++ {
		archive := n.cluster.images[n.loaded]
		if err := n.loadArchive(ctx, archive); err != nil {
			return fmt.Errorf("load %s into %s: %w", archive, n.Name, err)
		}
	}
	return nil
}

func (n *Node) loadArchive(ctx context.Context, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := n.Command(ctx, importImages[0], append(importImages[1:], "-")...)
	cmd.Stdin = f
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// Command returns a command that runs in the node as root, outside of all pods.
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	pid := "0" // without power no process has this ID
	if n.Running() {
		pid = strconv.Itoa(n.process.cmd.Process.Pid)
	}
	args = append(nsenter(pid, name), args...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "PATH="+n.cluster.components.Bin+":"+searchPath)
	return cmd
}

// Exec runs a command in the node and returns its standard output. The error contains its standard error.
func (n *Node) Exec(ctx context.Context, name string, args ...string) ([]byte, error) {
	if !n.Running() {
		return nil, fmt.Errorf("run %s on %s: the node is not running", name, n.Name)
	}
	cmd := n.Command(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("on %s: %s %s: %w: %s", n.Name, name, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}
