package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"embed"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/test/e2e/components"
)

// searchPath is PATH in a node, after the components.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// pidFile is where a node has the process number of a service.
func pidFile(service string) string { return "/run/" + service + ".pid" }

// importImages loads an archive of images into containerd: the last argument.
var importImages = []string{"ctr", "--namespace", "k8s.io", "images", "import"}

// boot is what a node does when it starts. It is what the lab writes down for it.
type boot struct {
	Name, IP   string
	ID         string // of this boot, as the kernel makes one for a machine's
	Dir        string // of the node
	LogDir     string
	Bin        string
	Images     []string // archives that are not loaded yet
	KubeletDir string
	Cgroup     string
	PodCIDR    string
	Routes     []route // to the pods of other nodes
}

type route struct{ To, Via string }

// PauseImage is what holds a pod's namespaces: for the templates.
func (b *boot) PauseImage() string { return components.PauseImage }

// nodeMain boots a node, and keeps its services running. It returns only if the boot
// fails.
func nodeMain(plan string) int {
	var b boot
	data, err := os.ReadFile(plan)
	if err == nil {
		err = json.Unmarshal(data, &b)
	}
	if err == nil {
		err = b.run()
	}
	fmt.Fprintln(os.Stderr, "Error: boot:", err)
	return 1
}

func (b *boot) run() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := os.Setenv("PATH", b.Bin+":"+searchPath); err != nil {
		return err
	}
	began := time.Now()
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"network", b.setUpNetwork},
		{"configuration", b.configure},
		{"root", func(context.Context) error { return b.makeRoot() }},
		{"cgroup", func(context.Context) error { return joinCgroup(b.Cgroup) }},
		{"containerd", b.startContainerd},
		{"images", b.loadImages},
		{"API server", b.waitForAPIServer},
		{"kubelet", b.startKubelet},
	} {
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		fmt.Fprintf(os.Stderr, "%6.2f s  %s\n", time.Since(began).Seconds(), step.what)
	}
	select {} // the services are kept running
}

func (b *boot) setUpNetwork(ctx context.Context) error {
	if err := unix.Sethostname([]byte(b.Name)); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return err
	}
	for { // the lab plugs it in
		if _, err := net.InterfaceByName("eth0"); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for eth0: %w", ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	commands := [][]string{
		{"link", "set", "lo", "up"},
		{"address", "add", b.IP + "/24", "dev", "eth0"},
		{"link", "set", "eth0", "up"},
		{"route", "add", "default", "via", labIP},
	}
	for _, r := range b.Routes {
		commands = append(commands, []string{"route", "add", r.To, "via", r.Via})
	}
	for _, args := range commands {
		if err := run(ctx, "ip", args...); err != nil {
			return err
		}
	}
	return nil
}

//go:embed config
var configFiles embed.FS

// configure writes the configuration of the node's services.
func (b *boot) configure(ctx context.Context) error {
	templates, err := template.ParseFS(configFiles, "config/*")
	if err != nil {
		return err
	}
	for _, t := range templates.Templates() {
		var content bytes.Buffer
		if err := t.Execute(&content, b); err != nil {
			return err
		}
		if err := writeFile(b.config(t.Name()), content.Bytes()); err != nil {
			return err
		}
	}
	spec, err := containerSpec(ctx)
	if err != nil {
		return fmt.Errorf("specification of containers: %w", err)
	}
	return writeFile(b.config("container.json"), spec)
}

// config returns the path of a configuration file. That of CNI is in a directory,
// of which containerd takes all files.
func (b *boot) config(name string) string {
	if strings.HasSuffix(name, ".conflist") {
		name = filepath.Join("cni", name)
	}
	return filepath.Join(b.Dir, "config", name)
}

func writeFile(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o600)
}

// bootIDFile is where a container finds the ID of the boot, like any process.
const bootIDFile = "proc/sys/kernel/random/boot_id"

// containerSpec is what all containers begin with: containerd's default, and the
// boot ID of the node instead of the machine's. Every container has a /proc of its
// own, hence the hook, which runs in the container's root before that is entered.
func containerSpec(ctx context.Context) ([]byte, error) {
	out, err := exec.CommandContext(ctx, "ctr", "oci", "spec").Output()
	if err != nil {
		return nil, err
	}
	mount, err := exec.LookPath("mount")
	if err != nil {
		return nil, err
	}
	var spec map[string]any
	if err := json.Unmarshal(out, &spec); err != nil {
		return nil, err
	}
	spec["hooks"] = map[string]any{"createContainer": []any{map[string]any{
		"path": mount, "args": []string{"mount", "--bind", "/" + maskOf(bootIDFile), bootIDFile},
	}}}
	return json.Marshal(spec)
}

// masks are the files of the kernel that a node has of its own. The kubelet sets
// those of them that it finds otherwise, for the whole machine: here it finds them
// as it wants them.
func (b *boot) masks() map[string]string {
	return map[string]string{
		bootIDFile:                           b.ID,
		"proc/sys/kernel/keys/root_maxbytes": "25000000",
		"proc/sys/kernel/keys/root_maxkeys":  "1000000",
		"proc/sys/kernel/panic":              "10",
		"proc/sys/kernel/panic_on_oops":      "1",
		"proc/sys/vm/overcommit_memory":      "1",
		"proc/sys/vm/panic_on_oom":           "0",
	}
}

// maskOf returns where a node has its own version of a file.
func maskOf(file string) string { return "run/masks/" + strings.ReplaceAll(file, "/", "-") }

// makeRoot gives the node a root of its own: the machine's, with what the node
// writes in memory, and with the node's disk where it keeps things. A path on the
// node is then nothing that another node sees, as for a pod's hostPath.
func (b *boot) makeRoot() error {
	root, upper := filepath.Join(b.Dir, "root"), filepath.Join(b.Dir, "upper")
	for _, dir := range []string{root, upper} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("upper", upper, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount %s: %w", upper, err)
	}
	for _, dir := range []string{"data", "work"} {
		if err := os.Mkdir(filepath.Join(upper, dir), 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=/,upperdir=%s/data,workdir=%s/work", upper, upper)
	if err := unix.Mount("node", root, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount %s: %w", root, err)
	}
	if err := b.fillRoot(root); err != nil {
		return err
	}
	return enterRoot(root)
}

func (b *boot) fillRoot(root string) error {
	for _, m := range b.mounts() {
		target := filepath.Join(root, m.target)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if m.flags&unix.MS_BIND != 0 {
			if err := os.MkdirAll(m.source, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(m.source, target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.source, m.target, err)
		}
	}
	for file, content := range b.masks() {
		mask := filepath.Join(root, maskOf(file))
		if err := writeFile(mask, []byte(content+"\n")); err != nil {
			return err
		}
		if err := unix.Mount(mask, filepath.Join(root, file), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount over /%s: %w", file, err)
		}
	}
	return nil
}

type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

// mounts are those of a node's root, below others the later.
func (b *boot) mounts() []mount {
	mounts := []mount{
		{"/dev", "/dev", "", unix.MS_BIND | unix.MS_REC, ""},
		{"proc", "/proc", "proc", 0, ""},
		{"sysfs", "/sys", "sysfs", 0, ""}, // a new one shows this network
		{cgroupMount, cgroupMount, "", unix.MS_BIND | unix.MS_REC, ""},
		{"run", "/run", "tmpfs", 0, "mode=755"},
		{"tmp", "/tmp", "tmpfs", 0, "mode=1777"},
		// They may be on filesystems of their own, which an overlay does not show.
		{b.Bin, b.Bin, "", unix.MS_BIND, ""},
		{b.Dir, b.Dir, "", unix.MS_BIND, ""},
		{b.LogDir, b.LogDir, "", unix.MS_BIND, ""},
		{filepath.Join(b.LogDir, b.Name+"-pods"), "/var/log/pods", "", unix.MS_BIND, ""},
	}
	for _, image := range b.Images {
		if dir := filepath.Dir(image); !slices.ContainsFunc(mounts, func(m mount) bool { return m.target == dir }) {
			mounts = append(mounts, mount{dir, dir, "", unix.MS_BIND, ""})
		}
	}
	for name, target := range map[string]string{
		"kubelet":    b.KubeletDir,
		"containerd": "/var/lib/containerd",
		"cni":        "/var/lib/cni",
		driverDir:    "/var/lib/btrfs-csi",
	} {
		// With what is mounted below: the pools.
		mounts = append(mounts, mount{filepath.Join(b.Dir, "disk", name), target, "", unix.MS_BIND | unix.MS_REC, ""})
	}
	return mounts
}

// enterRoot makes a directory the root of all processes here. A chroot would not do:
// runc has to be able to do the same.
func enterRoot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	// The old root is on top of the new one now.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// What pods mount with Bidirectional propagation is to be seen here.
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share the mounts: %w", err)
	}
	return nil
}

// service starts a program, waits until a probe of it succeeds, and from then on
// starts it again whenever it ends, as the init system of a machine does.
func (b *boot) service(ctx context.Context, probe func(context.Context) error, name string, args ...string) error {
	p, err := b.startService(name, args...)
	if err == nil {
		err = p.ready(ctx, probe)
	}
	if err != nil {
		return err
	}
	go func() {
		for {
			<-p.done
			fmt.Fprintf(os.Stderr, "%s ended (%s) and is started again\n", name, p.cmd.ProcessState)
			// RestartKubelet counts on this being a second or more.
			time.Sleep(time.Second)
			if again, err := b.startService(name, args...); err == nil {
				p = again
			} else {
				fmt.Fprintln(os.Stderr, "Error:", err) // and tried again: p has ended
			}
		}
	}()
	return nil
}

// startService starts a program and notes its process number.
func (b *boot) startService(name string, args ...string) (*process, error) {
	p, err := startProcess(name, filepath.Join(b.LogDir, b.Name+"-"+name+".log"), exec.Command(name, args...))
	if err != nil {
		return nil, err
	}
	return p, writeFile(pidFile(name), fmt.Appendln(nil, p.cmd.Process.Pid))
}

func (b *boot) startContainerd(ctx context.Context) error {
	isUp := func(ctx context.Context) error { return run(ctx, "ctr", "version") }
	return b.service(ctx, isUp, "containerd", "--config", b.config("containerd.toml"))
}

func (b *boot) loadImages(ctx context.Context) error {
	for _, archive := range b.Images {
		if err := run(ctx, importImages[0], append(importImages[1:], archive)...); err != nil {
			return err
		}
	}
	return nil
}

func (b *boot) startKubelet(ctx context.Context) error {
	isUp := func(ctx context.Context) error { return get(ctx, http.DefaultClient, "http://127.0.0.1:10248/healthz") }
	return b.service(ctx, isUp, "kubelet", "--config="+b.config("kubelet.yaml"), "--kubeconfig="+filepath.Join(b.Dir, "kubeconfig"),
		"--hostname-override="+b.Name, "--node-ip="+b.IP, "--root-dir="+b.KubeletDir)
}

// waitForAPIServer is for the kubelet: one that does not find it tries again after a
// while, and then after a longer one.
func (b *boot) waitForAPIServer(ctx context.Context) error {
	ca, err := os.ReadFile(filepath.Join(b.Dir, "ca.crt"))
	if err != nil {
		return err
	}
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(ca)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authorities, MinVersion: tls.VersionTLS12}}}
	defer client.CloseIdleConnections()
	for {
		err := get(ctx, client, "https://"+labIP+"/readyz")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the API server: %w (%w)", ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
