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

// searchPath follows the components in PATH of a node.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// pidFile is the path, in a node, of the process ID of a service.
func pidFile(service string) string { return "/run/" + service + ".pid" }

// importImages is the command that loads an archive of images into containerd. The archive is its last
// argument.
var importImages = []string{"ctr", "--namespace", "k8s.io", "images", "import"}

// boot is what a node does when it starts. The lab writes it into boot.json.
type boot struct {
	Name, IP   string
	ID         string // of this boot, like the kernel's boot_id
	Dir        string // of the node
	LogDir     string
	Bin        string
	Images     []string // archives to load
	KubeletDir string
	Cgroup     string
	PodCIDR    string
	Routes     []route // to the pods of other nodes
}

type route struct{ To, Via string }

// PauseImage returns the name of the pause image, for the templates.
func (b *boot) PauseImage() string { return components.PauseImage }

// nodeMain boots a node and keeps its services running. It returns only if the boot fails.
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
	select {} // service keeps them running
}

func (b *boot) setUpNetwork(ctx context.Context) error {
	if err := unix.Sethostname([]byte(b.Name)); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return err
	}
	for { // until the lab has plugged it in
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

// config returns the path of a configuration file. The file of CNI is in a directory of its own,
// because containerd reads all files there.
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

// bootIDFile is the path of the boot ID for every process.
const bootIDFile = "proc/sys/kernel/random/boot_id"

// containerSpec returns the base of every container: the default of containerd, with the boot ID of
// the node instead of the machine's. Every container has a /proc of its own, so a hook mounts the ID there
// before the container starts.
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

// masks lists kernel files of which a node has its own version. The kubelet would set some of them for
// the whole machine. In a node they already have the values that it wants.
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

// maskOf returns the path of the node's version of a file.
func maskOf(file string) string { return "run/masks/" + strings.ReplaceAll(file, "/", "-") }

// makeRoot makes the root of the node: an overlay over the root of the machine, whose upper layer is in
// memory, with the disk of the node mounted at the directories that outlive a reboot. So a hostPath of a
// pod is on one node only.
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

// mounts returns the mounts of a node's root, in the order of mounting.
func (b *boot) mounts() []mount {
	mounts := []mount{
		{"/dev", "/dev", "", unix.MS_BIND | unix.MS_REC, ""},
		{"proc", "/proc", "proc", 0, ""},
		{"sysfs", "/sys", "sysfs", 0, ""}, // a new sysfs shows the network namespace of the node
		{cgroupMount, cgroupMount, "", unix.MS_BIND | unix.MS_REC, ""},
		{"run", "/run", "tmpfs", 0, "mode=755"},
		{"tmp", "/tmp", "tmpfs", 0, "mode=1777"},
		// They may be on filesystems of their own. An overlay does not show other filesystems.
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
		// MS_REC includes the pools, which are mounted below.
		mounts = append(mounts, mount{filepath.Join(b.Dir, "disk", name), target, "", unix.MS_BIND | unix.MS_REC, ""})
	}
	return mounts
}

// enterRoot makes a directory the root of this mount namespace. It uses pivot_root, not chroot, because
// runc cannot pivot_root inside a chroot.
func enterRoot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	// pivot_root has mounted the old root over the new one.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// Mounts of pods with Bidirectional propagation have to appear in the node.
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share the mounts: %w", err)
	}
	return nil
}

// service starts a program and waits until a probe of it succeeds. From then on it starts the program
// again whenever it ends, as an init system does.
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
			// RestartKubelet needs a second or more here.
			time.Sleep(time.Second)
			if again, err := b.startService(name, args...); err == nil {
				p = again
			} else {
				fmt.Fprintln(os.Stderr, "Error:", err) // the loop tries again, since p has ended
			}
		}
	}()
	return nil
}

// startService starts a program and writes its process ID into the pidFile.
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

// waitForAPIServer waits until the API server can be reached. A kubelet that starts before that would
// retry at longer and longer intervals.
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
