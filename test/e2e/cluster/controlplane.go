package cluster

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// These are the addresses; see doc.go.
const (
	labIP        = "10.250.0.1"
	kubernetesIP = "10.96.0.1" // the Service "kubernetes", the first address of serviceCIDR
	serviceCIDR  = "10.96.0.0/16"
	podCIDR      = "10.244.0.0/16"
	bridge       = "lab0"
	bridgeMAC    = "02:00:0a:fa:00:01"
	etcdURL      = "http://127.0.0.1:2379"
)

func nodeIP(index int) string      { return "10.250.0." + strconv.Itoa(10+index) }
func nodePodCIDR(index int) string { return fmt.Sprintf("10.244.%d.0/24", index) }

// makeNetwork makes the bridge of the nodes.
func (c *Cluster) makeNetwork(ctx context.Context) error {
	// In a new network namespace the kernel sets this to 0.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		// Without a hardware address of its own the bridge takes that of a port. It would change with the
		// nodes, and the others would send to the old one.
		{"link", "add", bridge, "address", bridgeMAC, "type", "bridge"},
		{"address", "add", labIP + "/24", "dev", bridge},
		// The ClusterIP of the API server is an address of the bridge, so that clients in pods need no
		// kube-proxy.
		{"address", "add", kubernetesIP + "/32", "dev", bridge},
		{"link", "set", bridge, "up"},
	} {
		if err := run(ctx, "ip", args...); err != nil {
			return err
		}
	}
	for index := range c.Nodes {
		if err := run(ctx, "ip", "route", "add", nodePodCIDR(index+1), "via", nodeIP(index+1)); err != nil {
			return err
		}
	}
	return nil
}

// makePKI issues the certificates of the control plane and its clients.
func (c *Cluster) makePKI() (err error) {
	if c.pki, err = newPKI(filepath.Join(c.dir, "pki")); err != nil {
		return err
	}
	for _, id := range []identity{
		{name: "kube-apiserver", user: "kube-apiserver",
			ips:   []net.IP{net.ParseIP(labIP), net.ParseIP(kubernetesIP), net.IPv4(127, 0, 0, 1)},
			hosts: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"}},
		{name: "kube-apiserver-kubelet", user: "kube-apiserver-kubelet", groups: []string{"system:masters"}},
		{name: "admin", user: "admin", groups: []string{"system:masters"}},
		{name: "kube-controller-manager", user: "system:kube-controller-manager"},
		{name: "kube-scheduler", user: "system:kube-scheduler"},
	} {
		if err := c.pki.issue(id); err != nil {
			return err
		}
	}
	for _, name := range []string{"kube-controller-manager", "kube-scheduler"} {
		if err := c.pki.kubeconfig(name, c.pki.file(name+".kubeconfig")); err != nil {
			return err
		}
	}
	return c.pki.kubeconfig("admin", c.Kubeconfig())
}

// component starts a part of the control plane. Cores are scarce and memory is not, so its garbage
// collector runs less often than Go's default.
func (c *Cluster) component(name string, args ...string) (*process, error) {
	cmd := exec.Command(filepath.Join(c.components.Bin, name), args...)
	cmd.Env = append(os.Environ(), "GOGC=400")
	p, err := startProcess(name, c.logFile(name), cmd)
	if err == nil {
		c.processes = append(c.processes, p)
	}
	return p, err
}

func (c *Cluster) startEtcd(ctx context.Context) error {
	dir := filepath.Join(c.dir, "etcd")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("etcd", dir, "tmpfs", 0, "size=2g,mode=700"); err != nil {
		return fmt.Errorf("mount a tmpfs for etcd: %w", err)
	}
	const peerURL = "http://127.0.0.1:2380"
	etcd, err := c.component("etcd",
		"--data-dir="+filepath.Join(dir, "data"), "--unsafe-no-fsync",
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
		"--listen-peer-urls="+peerURL, "--initial-advertise-peer-urls="+peerURL, "--initial-cluster=default="+peerURL)
	if err != nil {
		return err
	}
	return etcd.ready(ctx, func(ctx context.Context) error { return get(ctx, http.DefaultClient, etcdURL+"/health") })
}

func (c *Cluster) startAPIServer(ctx context.Context) error {
	file := c.pki.file
	apiserver, err := c.component("kube-apiserver",
		"--etcd-servers="+etcdURL, "--advertise-address="+labIP, "--secure-port=443",
		"--service-cluster-ip-range="+serviceCIDR,
		"--allow-privileged",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--client-ca-file="+file("ca.crt"),
		// No aggregated API server uses these, but without them the components log errors all the
		// time.
		"--requestheader-client-ca-file="+file("ca.crt"), "--requestheader-allowed-names=nobody",
		"--tls-cert-file="+file("kube-apiserver.crt"), "--tls-private-key-file="+file("kube-apiserver.key"),
		// No DNS has the names of nodes.
		"--kubelet-preferred-address-types=InternalIP",
		"--kubelet-certificate-authority="+file("ca.crt"),
		"--kubelet-client-certificate="+file("kube-apiserver-kubelet.crt"), "--kubelet-client-key="+file("kube-apiserver-kubelet.key"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+file("service-accounts.pub"), "--service-account-signing-key-file="+file("service-accounts.key"))
	if err != nil {
		return err
	}
	return apiserver.ready(ctx, func(ctx context.Context) error {
		return c.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

// startControllers starts the parts of the control plane that need the API server. Each has one instance, so
// there is no leader election. Their request limits are those of large clusters, because tests create as many
// objects and should not wait for a client's own limit.
func (c *Cluster) startControllers() error {
	config := c.pki.file("kube-controller-manager.kubeconfig")
	_, err := c.component("kube-controller-manager",
		"--kubeconfig="+config, "--authentication-kubeconfig="+config, "--authorization-kubeconfig="+config,
		"--service-account-private-key-file="+c.pki.file("service-accounts.key"), "--root-ca-file="+c.pki.file("ca.crt"),
		"--use-service-account-credentials",
		"--cluster-cidr="+podCIDR, "--allocate-node-cidrs=false", "--service-cluster-ip-range="+serviceCIDR,
		"--leader-elect=false", "--kube-api-qps=300", "--kube-api-burst=600")
	if err != nil {
		return err
	}
	config = c.pki.file("kube-scheduler.kubeconfig")
	_, err = c.component("kube-scheduler",
		"--kubeconfig="+config, "--authentication-kubeconfig="+config, "--authorization-kubeconfig="+config,
		"--leader-elect=false", "--kube-api-qps=300", "--kube-api-burst=600")
	return err
}

// get fails unless a GET succeeds.
func get(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, response.Status)
	}
	return nil
}
