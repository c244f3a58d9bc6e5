//go:build e2e

package cluster_test

import (
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/btrfs-csi/btrfs-csi/build/image/archive"
	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
	"github.com/btrfs-csi/btrfs-csi/test/e2e/components"
)

// labVariable passes the name of the lab to the processes in it.
const labVariable = "BTRFS_CSI_E2E_TEST_LAB"

var lab = os.Getenv(labVariable)

func TestMain(m *testing.M) {
	cluster.Init()
	if lab == "" {
		lab = fmt.Sprintf("cluster-test-%d", os.Getpid())
		if err := os.Setenv(labVariable, lab); err != nil {
			panic(err)
		}
	}
	if ending := os.Getenv(endingVariable); ending != "" {
		os.Exit(runEnding(ending))
	}
	before := kernelSettings()
	code := (&cluster.Lab{Name: lab}).Main(m.Run)
	// Main returns only in the outermost process, after it has removed the lab.
	left := leftBy(lab)
	for setting, now := range kernelSettings() {
		if now != before[setting] {
			left = append(left, fmt.Sprintf("kernel setting %s: %s, it was %s", setting, now, before[setting]))
		}
	}
	if len(left) > 0 {
		fmt.Fprintf(os.Stderr, "left on the machine:\n%s\n", strings.Join(left, "\n"))
		code = 1
	}
	os.Exit(code)
}

// kernelSettings are the machine's settings that a kubelet changes outside of a lab.
func kernelSettings() map[string]string {
	settings := map[string]string{}
	for _, name := range []string{
		"kernel/keys/root_maxbytes", "kernel/keys/root_maxkeys", "kernel/panic", "kernel/panic_on_oops",
		"vm/overcommit_memory", "vm/panic_on_oom",
	} {
		value, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			panic(err)
		}
		settings[name] = strings.TrimSpace(string(value))
	}
	return settings
}

// leftBy lists the mounts, devices, cgroups and files of a lab that are left on the machine.
func leftBy(lab string) (left []string) {
	dir := "/var/tmp/btrfs-csi-e2e/" + lab
	if _, err := os.Lstat(dir); err == nil {
		left = append(left, "directory "+dir)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/btrfs-csi-e2e-" + lab + ".*", "/sys/fs/cgroup/*/btrfs-csi-e2e-" + lab + ".*"} {
		cgroups, _ := filepath.Glob(pattern)
		for _, cgroup := range cgroups {
			left = append(left, "cgroup "+cgroup)
		}
	}
	for what, pattern := range map[string]string{
		"loop device on": "/sys/block/loop*/loop/backing_file",
		"process":        "/proc/[0-9]*/cmdline",
		"mounts":         "/proc/[0-9]*/mountinfo",
	} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			content, _ := os.ReadFile(file)
			if strings.Contains(string(content), dir+"/") || strings.Contains(string(content), marker(lab)) {
				left = append(left, what+" "+file)
			}
		}
	}
	return left
}

// patience is the longest wait of a test.
const patience = 5 * time.Minute

// marker is part of the names of all that a test makes and a lab might leave behind.
func marker(lab string) string { return "left-by-" + lab }

// start starts a cluster and stops it when the test ends.
func start(t *testing.T, o cluster.Options) *cluster.Cluster {
	t.Helper()
	o.Log = t.Output()
	c, err := cluster.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// TestCluster tests everything on one cluster, in order.
func TestCluster(t *testing.T) {
	began := time.Now()
	c := start(t, cluster.Options{})
	t.Logf("the cluster was up after %.1f s", time.Since(began).Seconds())
	if len(c.Nodes) != 2 {
		t.Fatalf("%d nodes, want 2", len(c.Nodes))
	}
	for i, node := range c.Nodes {
		runPod(t, c, podName(i), node)
	}
	for name, test := range map[string]func(*testing.T, *cluster.Cluster){
		"pods": testPods, "own files": testOwnFiles, "own kernel settings": testOwnKernelSettings,
	} {
		t.Run(name, func(t *testing.T) { test(t, c) })
	}
	t.Run("kubelet restart", func(t *testing.T) { testRestartKubelet(t, c) })
	t.Run("service restart", func(t *testing.T) { testServiceRestart(t, c) })
	t.Run("images", func(t *testing.T) { testImages(t, c) })
	t.Run("pools", func(t *testing.T) { testPools(t, c) })
	t.Run("power cut", func(t *testing.T) { testPowerCut(t, c) })
}

func podName(node int) string { return fmt.Sprintf("pod%d", node+1) }

// runPod runs a pod on a node that sees the node's pools, and waits until it runs.
func runPod(t *testing.T, c *cluster.Cluster, name string, node *cluster.Node) {
	t.Helper()
	propagation := corev1.MountPropagationHostToContainer
	var grace int64
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeName:                      node.Name,
			TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{
				Name: "shell", Image: components.BusyboxImage,
				Command:      []string{"sh", "-c", "echo here is $HOSTNAME; exec sleep 1000000"},
				VolumeMounts: []corev1.VolumeMount{{Name: "pools", MountPath: "/pools", MountPropagation: &propagation}},
			}},
			Volumes: []corev1.Volume{{Name: "pools", VolumeSource: corev1.VolumeSource{
				HostPath: &corev1.HostPathVolumeSource{Path: "/var/lib/btrfs-csi/pools"},
			}}},
		},
	}
	if _, err := c.Client().CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	waitForPod(t, c, name, 0)
}

// waitForPod waits until a pod runs and has been restarted so often, or more often.
func waitForPod(t *testing.T, c *cluster.Cluster, name string, restarts int32) *corev1.Pod {
	t.Helper()
	var pod *corev1.Pod
	err := wait.PollUntilContextTimeout(t.Context(), 100*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
		var err error
		pod, err = c.Client().CoreV1().Pods("default").Get(ctx, name, metav1.GetOptions{})
		if err != nil || len(pod.Status.ContainerStatuses) == 0 {
			return false, err
		}
		status := pod.Status.ContainerStatuses[0]
		return status.Ready && status.RestartCount >= restarts, nil
	})
	if err != nil {
		t.Fatalf("pod %s, which is to run after %d restarts: %v: %+v", name, restarts, err, pod.Status)
	}
	return pod
}

func kubectl(t *testing.T, c *cluster.Cluster, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), c.Program("kubectl"), append([]string{"--kubeconfig", c.Kubeconfig()}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// on runs a shell command on a node.
func on(t *testing.T, node *cluster.Node, command string) string {
	t.Helper()
	out, err := node.Exec(t.Context(), "sh", "-c", command)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func testPods(t *testing.T, c *cluster.Cluster) {
	for i, node := range c.Nodes {
		if out, want := kubectl(t, c, "exec", podName(i), "--", "hostname"), podName(i)+"\n"; out != want {
			t.Errorf("hostname in %s: %q, want %q", podName(i), out, want)
		}
		if out, want := kubectl(t, c, "logs", podName(i)), "here is "+podName(i)+"\n"; out != want {
			t.Errorf("log of %s: %q, want %q", podName(i), out, want)
		}
		// A pod reaches the pod of the other node, and the API server at its ClusterIP.
		other := waitForPod(t, c, podName(1-i), 0)
		kubectl(t, c, "exec", podName(i), "--", "ping", "-c", "1", "-W", "5", other.Status.PodIP)
		kubectl(t, c, "exec", podName(i), "--", "sh", "-c", "nc -w 5 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT </dev/null")
		if out := on(t, node, "hostname"); out != node.Name+"\n" {
			t.Errorf("hostname of %s: %q", node.Name, out)
		}
	}
	if _, err := c.Nodes[0].Exec(t.Context(), "sh", "-c", "echo what is wrong >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "what is wrong") {
		t.Errorf("a command that fails on a node: %v, want an error that has its standard error", err)
	}
}

func testOwnFiles(t *testing.T, c *cluster.Cluster) {
	file := "/var/lib/" + marker(lab)
	on(t, c.Nodes[0], "echo mine > "+file)
	if out := on(t, c.Nodes[0], "cat "+file); out != "mine\n" {
		t.Errorf("node1 has %q in its file, want what it wrote", out)
	}
	on(t, c.Nodes[1], "! test -e "+file)
	if _, err := os.Lstat(file); err == nil {
		t.Errorf("%s, written by a node, is on the machine", file)
	}
}

// testOwnKernelSettings checks that the kubelet has not changed the settings of the machine.
func testOwnKernelSettings(t *testing.T, c *cluster.Cluster) {
	kubelet := on(t, c.Nodes[0], "cat /proc/sys/kernel/panic_on_oops /proc/sys/vm/overcommit_memory")
	if kubelet != "1\n1\n" {
		t.Errorf("settings on a node: %q, want what the kubelet wants", kubelet)
	}
	var log strings.Builder
	for _, node := range c.Nodes {
		content, err := os.ReadFile(filepath.Join(c.LogDir(), node.Name+"-kubelet.log"))
		if err != nil {
			t.Fatal(err)
		}
		log.Write(content)
	}
	if strings.Contains(log.String(), "Updating kernel flag") {
		t.Error("a kubelet has set what is the machine's; see its log")
	}
	one, two := on(t, c.Nodes[0], "cat /proc/sys/kernel/random/boot_id"), on(t, c.Nodes[1], "cat /proc/sys/kernel/random/boot_id")
	if one == two {
		t.Errorf("both nodes have the boot ID %s", one)
	}
	if pod := kubectl(t, c, "exec", podName(0), "--", "cat", "/proc/sys/kernel/random/boot_id"); pod != one {
		t.Errorf("boot ID in a pod: %q, want that of its node: %q", pod, one)
	}
}

func testRestartKubelet(t *testing.T, c *cluster.Cluster) {
	node := c.Nodes[0]
	before, restarts := on(t, node, "cat /run/kubelet.pid"), restartsOf(t, c, podName(0))
	if err := node.RestartKubelet(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := on(t, node, "cat /run/kubelet.pid"); after == before {
		t.Errorf("the kubelet is still process %s", before)
	}
	if now := restartsOf(t, c, podName(0)); now != restarts {
		t.Errorf("the pod was restarted %d times", now-restarts)
	}
}

func restartsOf(t *testing.T, c *cluster.Cluster, pod string) int32 {
	t.Helper()
	return waitForPod(t, c, pod, 0).Status.ContainerStatuses[0].RestartCount
}

func testServiceRestart(t *testing.T, c *cluster.Cluster) {
	on(t, c.Nodes[1], "kill -9 $(cat /run/containerd.pid)")
	var out []byte
	err := wait.PollUntilContextTimeout(t.Context(), 100*time.Millisecond, patience, false, func(ctx context.Context) (bool, error) {
		var err error
		out, err = exec.CommandContext(ctx, c.Program("kubectl"), "--kubeconfig", c.Kubeconfig(), "exec", podName(1), "--", "true").CombinedOutput()
		return err == nil, nil
	})
	if err != nil {
		t.Fatalf("a command in a pod after containerd was killed: %v: %s", err, out)
	}
	if now := restartsOf(t, c, podName(1)); now != 0 {
		t.Errorf("the pod was restarted %d times", now)
	}
}

func testImages(t *testing.T, c *cluster.Cluster) {
	const name = "localhost/e2e/loaded:1"
	file := filepath.Join(t.TempDir(), "loaded.tar")
	image, err := archive.Image(fstest.MapFS{"file": {Data: []byte("content"), Mode: 0o644}}, gzip.NoCompression, v1.ConfigFile{Architecture: runtime.GOARCH})
	if err != nil {
		t.Fatal(err)
	}
	if err := archive.Write(file, image, name); err != nil {
		t.Fatal(err)
	}
	if err := c.Load(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	for _, node := range c.Nodes {
		if out := on(t, node, "ctr --namespace k8s.io images list --quiet"); !strings.Contains(out, name+"\n") {
			t.Errorf("%s has the images %q, want %s too", node.Name, out, name)
		}
	}
}

func testPools(t *testing.T, c *cluster.Cluster) {
	one, two := c.Nodes[0], c.Nodes[1]
	disk, err := c.NewDisk(t.Context(), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	if err := one.AddPool(t.Context(), "fast", disk, "compress=zstd"); err != nil {
		t.Fatal(err)
	}
	if err := two.AddPool(t.Context(), "fast", disk); err == nil {
		t.Fatal("a disk that node1 has was added to node2, want an error")
	}
	if out := on(t, one, "findmnt --noheadings --output FSTYPE,OPTIONS /var/lib/btrfs-csi/pools/fast"); !strings.HasPrefix(out, "btrfs") || !strings.Contains(out, "compress=zstd") {
		t.Errorf("the pool on node1 is %q, want a btrfs with compress=zstd", out)
	}
	on(t, one, "echo moves > /var/lib/btrfs-csi/pools/fast/file")
	// A pod that has been running before sees the pool.
	if out := kubectl(t, c, "exec", podName(0), "--", "cat", "/pools/fast/file"); out != "moves\n" {
		t.Errorf("the file in the pool is %q in a pod", out)
	}
	// RemovePool refuses a disk that is in use.
	on(t, one, "mkdir /mnt/bound; mount --bind /var/lib/btrfs-csi/pools/fast /mnt/bound")
	if _, err := one.RemovePool(t.Context(), "fast"); err == nil {
		t.Fatal("a pool of which a part is mounted elsewhere was removed, want an error")
	}
	on(t, one, "test -e /var/lib/btrfs-csi/pools/fast/file && umount /mnt/bound")
	moved, err := one.RemovePool(t.Context(), "fast")
	if err != nil {
		t.Fatal(err)
	}
	on(t, one, "! findmnt /var/lib/btrfs-csi/pools/fast")
	if err := two.AddPool(t.Context(), "fast", moved); err != nil {
		t.Fatal(err)
	}
	if out := on(t, two, "cat /var/lib/btrfs-csi/pools/fast/file"); out != "moves\n" {
		t.Errorf("the file in the pool is %q on node2", out)
	}
}

// testPowerCut checks which data a node has after a power cut. It also checks that no loop device of the node
// is left, since one would keep a filesystem of the node alive.
func testPowerCut(t *testing.T, c *cluster.Cluster) {
	node, pool := c.Nodes[0], "/var/lib/btrfs-csi/pools/default"
	restarts, untouched := restartsOf(t, c, podName(0)), restartsOf(t, c, podName(1))
	boot := on(t, node, "cat /proc/sys/kernel/random/boot_id")
	on(t, node, "set -e; "+loopCommands(lab))
	on(t, node, "echo kept > /var/lib/btrfs-csi/kept; echo gone > /etc/gone")
	lost := cutPower(t, node, pool)
	if loops, _ := exec.Command("losetup", "--list", "--noheadings").Output(); strings.Contains(string(loops), marker(lab)) {
		t.Errorf("after the power cut there are still loop devices:\n%s", loops)
	}
	if err := node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := on(t, node, "cat /proc/sys/kernel/random/boot_id"); now == boot {
		t.Errorf("the boot ID is still %s", boot)
	}
	on(t, node, "test -e /var/lib/btrfs-csi/kept && ! test -e /etc/gone")
	if out := on(t, node, "cat "+pool+"/synced"); out != "synced\n" {
		t.Errorf("the file that was synced before the power cut is %q", out)
	}
	on(t, node, "! test -e "+lost)
	waitForPod(t, c, podName(0), restarts+1)
	if now := restartsOf(t, c, podName(1)); now != untouched {
		t.Errorf("the pod of the other node was restarted %d times", now-untouched)
	}
}

// cutPower kills a node right after it has written two files to a pool, and returns the name of the second.
// The file "synced" is synced, the second is not. If the pool was committed in between, as by a sync(1)
// on this machine, cutPower does it all again.
func cutPower(t *testing.T, node *cluster.Node, pool string) (lost string) {
	t.Helper()
	device := strings.TrimSpace(on(t, node, "findmnt --noheadings --output SOURCE "+pool))
	disk, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for try := range 5 {
		lost = fmt.Sprintf("%s/lost%d", pool, try)
		on(t, node, "cd "+pool+"; echo synced > synced; sync -f .; echo lost > "+lost)
		before := transaction(t, strings.TrimSpace(string(disk)))
		if err := node.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if transaction(t, strings.TrimSpace(string(disk))) == before {
			return lost
		}
		if err := node.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("somebody syncs all the time, so that nothing can be lost")
	return ""
}

// transaction returns the number of the last transaction in a disk's superblock.
func transaction(t *testing.T, disk string) string {
	t.Helper()
	out, err := exec.Command("btrfs", "inspect-internal", "dump-super", disk).Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "generation") {
			return line
		}
	}
	t.Fatalf("no generation in the superblock of %s: %s", disk, out)
	return ""
}

// loopCommands set up loop devices as raw block volumes do, on a file in a subvolume of a pool and on that
// device. They also set up one as the driver does for a pool in a file, on a file in its state directory.
func loopCommands(lab string) string {
	return `cd /var/lib/btrfs-csi; truncate -s 64M ` + marker(lab) + `.img; losetup --find ` + marker(lab) + `.img
		cd pools/default
		mkdir -p active/image; btrfs subvolume create active/image/fs >&2; cd active/image/fs
		truncate -s 64M ` + marker(lab) + `; losetup --find $(losetup --find --show ` + marker(lab) + `)`
}

// TestAgain starts a second cluster, with other nodes, in the same lab.
func TestAgain(t *testing.T) {
	const kubeletDir = "/data/kubelet"
	c := start(t, cluster.Options{Nodes: []cluster.NodeOptions{{KubeletDir: kubeletDir, PoolSize: -1}}})
	node := c.Nodes[0]
	runPod(t, c, "pod", node)
	on(t, node, "test -d "+kubeletDir+"/pods && ! findmnt /var/lib/btrfs-csi/pools/default")
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Dir(c.LogDir()))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), "node") || entry.Name() == "etcd" || entry.Name() == "disks" {
			t.Errorf("%s is left of a cluster that was stopped", entry.Name())
		}
	}
}

// TestStartFails expects an error with the reason when a cluster does not start.
func TestStartFails(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "broken.tar")
	if err := os.WriteFile(broken, []byte("no archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, err := cluster.Start(t.Context(), cluster.Options{Images: []string{broken}})
	if err == nil || !strings.Contains(err.Error(), broken) || !strings.Contains(err.Error(), "/log/node") {
		t.Errorf("start with a broken image: %v, want an error that names it, and the log", err)
	}
	if took := time.Since(began); took > patience { // startTimeout would end it after ten minutes
		t.Errorf("that was said after %s, want as soon as it failed", took)
	}
}
