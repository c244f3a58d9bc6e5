package simulate

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/driver"
)

// pod is a pod with one claim. All of it but its name is protected by simulation.mu.
type pod struct {
	name, claim string
	node        string // "" until it is scheduled
	volume      *corev1.PersistentVolume
	deleted     bool
	tried       bool   // something may be mounted
	running     bool   // all is mounted
	mounted     string // ID of the mount of the disk that the volume is on
	stopped     bool
}

// podList returns the pods by name.
func (s *simulation) podList() []*pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	pods := make([]*pod, 0, len(s.pods))
	for _, name := range sorted(s.pods) {
		pods = append(pods, s.pods[name])
	}
	return pods
}

// isUsed reports whether a pod uses a claim.
func (s *simulation) isUsed(claim string) bool {
	return slices.ContainsFunc(s.podList(), func(p *pod) bool { return p.claim == claim })
}

// kubeletOf is the kubelet of a node: it registers the driver, and mounts volumes.
func (s *simulation) kubeletOf(n *node) *worker {
	return s.newWorker("kubelet@"+n.name, func(w *worker, v *view) (tasks []task) {
		if p := n.driver.Load(); p != nil && p.serving.Load() && n.isUnregistered(p) {
			tasks = append(tasks, task{"register", func(ctx context.Context) error { return w.register(ctx, n) }})
		}
		for _, p := range s.podList() {
			s.mu.Lock()
			here, run, end := p.node == n.name, !p.deleted && !p.running, p.deleted && !p.stopped
			s.mu.Unlock()
			switch {
			case here && run:
				tasks = append(tasks, task{p.name, func(ctx context.Context) error { return w.runPod(ctx, n, p) }})
			case here && end:
				tasks = append(tasks, task{p.name, func(ctx context.Context) error { return w.stopPod(ctx, n, p) }})
			case end && p.node == "":
				s.forgetPod(p)
			}
		}
		return tasks
	})
}

func (s *simulation) forgetPod(p *pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pods, p.name)
}

// isUnregistered reports whether the driver has pools that the kubelet has not asked for: the
// driver has it ask again then.
func (n *node) isUnregistered(p *process) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, id := range p.engine.PoolIDs() {
		if !n.labels[p.who+" "+id] {
			return true
		}
	}
	return false
}

// register asks the driver for its topology, and labels the Node with it.
func (w *worker) register(ctx context.Context, n *node) error {
	p := n.driver.Load()
	info, err := csi.NewNodeClient(w.dial(n)).NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	if err != nil {
		return err
	}
	o, ok := w.views.now().nodes.get(n.name)
	if !ok {
		return errNotFound
	}
	o = o.DeepCopy()
	if o.Labels == nil {
		o.Labels = map[string]string{}
	}
	for key, value := range info.GetAccessibleTopology().GetSegments() {
		o.Labels[key] = value
	}
	if err := w.conn.update(ctx, clustertest.Nodes, o); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for key := range info.GetAccessibleTopology().GetSegments() {
		n.labels[p.who+" "+strings.TrimPrefix(key, driver.TopologyPrefix)] = true
	}
	return nil
}

func (n *node) staging(p *pod) string { return filepath.Join(n.kubelet(), "staging", p.volume.Name) }
func (n *node) target(p *pod) string {
	return filepath.Join(n.kubelet(), "pods", p.name, "mount")
}

func (w *worker) runPod(ctx context.Context, n *node, p *pod) error {
	handle := p.volume.Spec.CSI.VolumeHandle
	for _, dir := range []string{n.staging(p), filepath.Dir(n.target(p))} {
		must(os.MkdirAll(dir, 0o750))
	}
	w.mu.Lock()
	p.tried = true
	w.mu.Unlock()
	nodeClient := csi.NewNodeClient(w.dial(n))
	if _, err := nodeClient.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: handle, StagingTargetPath: n.staging(p), VolumeCapability: writer, VolumeContext: p.volume.Spec.CSI.VolumeAttributes,
	}); err != nil {
		return err
	}
	at := n.mountOf(poolOf(p.volume))
	if _, err := nodeClient.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: handle, StagingTargetPath: n.staging(p), TargetPath: n.target(p), VolumeCapability: writer, VolumeContext: p.volume.Spec.CSI.VolumeAttributes,
	}); err != nil {
		return err
	}
	if at == "" || at != n.mountOf(poolOf(p.volume)) || !isMounted(n.target(p)) {
		return errWaits // its disk or its machine has gone meanwhile
	}
	w.mu.Lock()
	p.running, p.mounted = true, at
	w.mu.Unlock()
	w.writeContent(n, handle)
	return nil
}

func (w *worker) stopPod(ctx context.Context, n *node, p *pod) error {
	if p.tried {
		handle, nodeClient := p.volume.Spec.CSI.VolumeHandle, csi.NewNodeClient(w.dial(n))
		if _, err := nodeClient.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: handle, TargetPath: n.target(p)}); err != nil {
			return err
		}
		w.mu.Lock()
		p.running = false
		shared := false // the volume is staged for all pods
		for _, other := range w.pods {
			shared = shared || other != p && other.node == p.node && other.tried && other.volume.Name == p.volume.Name
		}
		w.mu.Unlock()
		if !shared {
			if _, err := nodeClient.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: handle, StagingTargetPath: n.staging(p)}); err != nil {
				return err
			}
		}
	}
	w.mu.Lock()
	p.stopped = true
	w.mu.Unlock()
	w.forgetPod(p)
	return nil
}

// mountsBelow returns the mount points below a directory of the real machine, the last first.
func mountsBelow(dir string) (points []string) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	must(err)
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		if point := strings.Fields(lines.Text())[4]; strings.HasPrefix(point, dir+"/") {
			points = append(points, point)
		}
	}
	slices.Reverse(points)
	return points
}

func isMounted(point string) bool { return slices.Contains(mountsBelow(filepath.Dir(point)), point) }

// unmountAll takes all mounts below a directory away, as the end of a machine does.
func unmountAll(dir string) {
	for _, point := range mountsBelow(dir) {
		must(unix.Unmount(point, unix.MNT_DETACH))
	}
}
