//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
)

// TestInstall checks the cluster after the installation of the chart.
func TestInstall(t *testing.T) {
	t.Run("pods", testPodsReady)
	t.Run("topology", func(t *testing.T) { eachNode(t, testTopology) })
	t.Run("pool", func(t *testing.T) { eachNode(t, testPool) })
	t.Run("http", func(t *testing.T) { eachNode(t, testHTTP) })
	t.Run("security contexts", testSecurityContexts)
	t.Run("processes", func(t *testing.T) { eachNode(t, testProcesses) })
	t.Run("rights", testRights)
	t.Run("rights on other nodes", testRightsElsewhere)
	t.Run("helm test", func(t *testing.T) { helm(t, "test", release, "--namespace", driverNamespace, "--timeout", "2m") })
}

func testPodsReady(t *testing.T) {
	set, err := api().AppsV1().DaemonSets(driverNamespace).Get(ctx, release, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if want := int32(len(lab.Nodes)); set.Status.DesiredNumberScheduled != want {
		t.Errorf("the driver is wanted on %d nodes, want %d", set.Status.DesiredNumberScheduled, want)
	}
	for _, node := range lab.Nodes {
		if pod := driverReady(t, node); len(pod.Status.ContainerStatuses) != 4 {
			t.Errorf("pod %s has %d containers, want the driver and 3 sidecars", pod.Name, len(pod.Status.ContainerStatuses))
		}
	}
	kubectl(t, "rollout", "status", "--namespace", driverNamespace, "deployment/"+release+"-snapshot-controller", "--timeout", "1m")
}

// testTopology checks the topology labels and keys of the nodes.
func testTopology(t *testing.T, node *cluster.Node) {
	want := []string{topologyPrefix + poolID(t, node, "default")}
	info := await(t, api().StorageV1().CSINodes(), node.Name, "have the driver", func(n *storagev1.CSINode) bool {
		return slices.ContainsFunc(n.Spec.Drivers, func(d storagev1.CSINodeDriver) bool { return d.Name == driverName })
	})
	for _, d := range info.Spec.Drivers {
		if d.Name == driverName && (!slices.Equal(d.TopologyKeys, want) || d.NodeID != node.Name) {
			t.Errorf("CSINode has node ID %q and topology keys %q, want %q and %q", d.NodeID, d.TopologyKeys, node.Name, want)
		}
	}
	n, err := api().CoreV1().Nodes().Get(ctx, node.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(n.Labels, func(key, _ string) bool { return !strings.HasPrefix(key, topologyPrefix) })
	if !maps.Equal(n.Labels, map[string]string{want[0]: "true"}) {
		t.Errorf("labels of the node %v, want one, %s", n.Labels, want[0])
	}
}

func testPool(t *testing.T, node *cluster.Node) {
	pool := await(t, lab.pools, poolID(t, node, "default"), "be ready", func(p *v1alpha1.Pool) bool { return p.Status.State == "Ready" })
	if pool.Spec != (v1alpha1.PoolSpec{NodeName: node.Name, Pool: "default"}) {
		t.Errorf("the Pool is that of %+v", pool.Spec)
	}
	size := onNode(t, node, "blockdev --getsize64 $(findmnt -no SOURCE /var/lib/btrfs-csi/pools/default)")
	if fmt.Sprintln(pool.Status.Size.Value()) != size || pool.Status.Quota != lab.quota {
		t.Errorf("size %v, quota %q, want %s and %s", pool.Status.Size, pool.Status.Quota, size, lab.quota)
	}
	if lab.loopPool != "" {
		testLoopPool(t, node, pool)
	}
	if a := pool.Status.Available.Value(); a <= 0 || a > pool.Status.Size.Value() {
		t.Errorf("available %v of %v", pool.Status.Available, pool.Status.Size)
	}
}

// testLoopPool checks that the driver has made the pool in a file.
func testLoopPool(t *testing.T, node *cluster.Node, pool *v1alpha1.Pool) {
	t.Helper()
	if want := resource.MustParse(lab.loopPool); pool.Status.Size.Cmp(want) != 0 {
		t.Errorf("the pool is of %v, want %v", pool.Status.Size, lab.loopPool)
	}
	device := strings.TrimSpace(onNode(t, node, "findmnt -no SOURCE /var/lib/btrfs-csi/pools/default"))
	file := onNode(t, node, "losetup --list --noheadings --output BACK-INO "+device+"; stat -c %i /var/lib/btrfs-csi/default.img")
	if inodes := strings.Fields(file); len(inodes) != 2 || inodes[0] != inodes[1] {
		t.Errorf("%s, the device of the pool, is on inode %q, want that of default.img, the second", device, inodes)
	}
}

func testHTTP(t *testing.T, node *cluster.Node) {
	pod := driverReady(t, node)
	for path, want := range map[string][]string{
		"/healthz": nil,
		"/readyz":  nil,
		"/metrics": {
			fmt.Sprintf("btrfs_csi_pool_usable{pool=\"default\",pool_id=%q} 1\n", poolID(t, node, "default")),
			"btrfs_csi_operation_duration_seconds_count{code=\"OK\",method=\"NodeGetInfo\"}",
			"btrfs_csi_orphans{kind=\"volume\"}",
			"process_resident_memory_bytes",
		},
	} {
		response, err := http.Get("http://" + pod.Status.PodIP + ":9808" + path)
		if err != nil {
			t.Error(err)
			continue
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != http.StatusOK {
			t.Errorf("GET %s: %s: %s (%v)", path, response.Status, body, err)
		}
		for _, text := range want {
			if !strings.Contains(string(body), text) {
				t.Errorf("GET %s: there is no %s in\n%s", path, text, body)
			}
		}
	}
}

// testSecurityContexts checks that only the driver is privileged.
func testSecurityContexts(t *testing.T) {
	pods, err := api().CoreV1().Pods(driverNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods.Items {
		if pod.Spec.HostNetwork || pod.Spec.HostPID || pod.Spec.HostIPC {
			t.Errorf("pod %s has namespaces of the host", pod.Name)
		}
		for _, c := range pod.Spec.Containers {
			of := pod.Name + " " + c.Name
			have := c.SecurityContext
			if have == nil {
				t.Errorf("%s has no security context", of)
				continue
			}
			if have.ReadOnlyRootFilesystem == nil || !*have.ReadOnlyRootFilesystem {
				t.Errorf("%s may write to its root filesystem", of)
			}
			if c.Name == "btrfs-csi" {
				continue
			}
			if have.Privileged != nil && *have.Privileged {
				t.Errorf("%s is privileged", of)
			}
			if caps := have.Capabilities; caps == nil || !slices.Equal(caps.Drop, []corev1.Capability{"ALL"}) || len(caps.Add) > 0 {
				t.Errorf("%s has capabilities: %+v", of, caps)
			}
		}
	}
}

// testProcesses checks the processes of the containers.
func testProcesses(t *testing.T, node *cluster.Node) {
	for _, name := range []string{"csi-provisioner", "csi-snapshotter", "csi-resizer"} {
		status := strings.Fields(onNode(t, node, "grep -E '^(Uid|CapEff|NoNewPrivs|Seccomp):' /proc/$(pidof "+name+")/status"))
		want := "Uid: 65532 65532 65532 65532 CapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2"
		if have := strings.Join(status, " "); have != want {
			t.Errorf("%s runs with %s, want %s", name, have, want)
		}
	}
	root := onNode(t, node, "awk '$5 == \"/\" { print $6 }' /proc/$(pidof btrfs-csi)/mountinfo")
	if !strings.HasPrefix(root, "ro,") {
		t.Errorf("root filesystem of the driver's container: %q, want read-only", root)
	}
	socket := onNode(t, node, "stat -c '%a %u' "+lab.kubeletDir+"/plugins/"+driverName+"/csi.sock")
	if socket != "600 65532\n" {
		t.Errorf("mode and owner of the driver's socket: %q, want that only the sidecars may open it", socket)
	}
}

// testRights checks some rights that the driver must not have, and one that it has.
func testRights(t *testing.T) {
	user := "system:serviceaccount:" + driverNamespace + ":" + release
	for _, c := range []struct {
		verb, group, resource, namespace string
		allowed                          bool
	}{
		{"get", driverName, "subvolumes", "", true},
		{"get", "", "secrets", driverNamespace, false},
		{"list", "", "secrets", "", false},
		{"create", "", "pods", driverNamespace, false},
		{"delete", "", "pods", "default", false},
		{"create", "", "persistentvolumeclaims", "default", false},
		{"delete", "", "persistentvolumeclaims", "default", false},
		{"delete", "", "nodes", "", false},
		{"update", "", "nodes", "", false},
		{"create", "storage.k8s.io", "storageclasses", "", false},
		{"delete", "snapshot.storage.k8s.io", "volumesnapshotcontents", "", false},
		{"create", "", "serviceaccounts/token", driverNamespace, false},
		{"create", "rbac.authorization.k8s.io", "clusterrolebindings", "", false},
		{"update", "admissionregistration.k8s.io", "validatingadmissionpolicies", "", false},
	} {
		resource, sub, _ := strings.Cut(c.resource, "/")
		review, err := api().AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
			Spec: authorizationv1.SubjectAccessReviewSpec{User: user, ResourceAttributes: &authorizationv1.ResourceAttributes{
				Verb: c.verb, Group: c.group, Resource: resource, Subresource: sub, Namespace: c.namespace,
			}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if review.Status.Allowed != c.allowed {
			t.Errorf("may the driver %s %s.%s in %q: %t, want %t", c.verb, c.resource, c.group, c.namespace, review.Status.Allowed, c.allowed)
		}
	}
}

// testRightsElsewhere tries, with the token of one node's driver, what only another node's driver may do.
func testRightsElsewhere(t *testing.T) {
	one, two := lab.Nodes[0], lab.Nodes[1]
	as := driverOf(t, one)
	core, err := kubernetes.NewForConfig(as)
	if err != nil {
		t.Fatal(err)
	}
	_, pools, err := ours(as)
	if err != nil {
		t.Fatal(err)
	}
	dryRun := []string{metav1.DryRunAll}
	label := func(node *cluster.Node) error {
		patch := []byte(`{"metadata":{"labels":{"topology.btrfs-csi.github.io/tried-by-a-test":null}}}`)
		_, err := core.CoreV1().Nodes().Patch(ctx, node.Name, types.MergePatchType, patch, metav1.PatchOptions{DryRun: dryRun})
		return err
	}
	setStatus := func(node *cluster.Node) error {
		pool, err := pools.Get(ctx, poolID(t, node, "default"), metav1.GetOptions{})
		if err == nil {
			pool.Status.Message = "tried by a test"
			_, err = pools.UpdateStatus(ctx, pool, metav1.UpdateOptions{DryRun: dryRun})
		}
		return err
	}
	hostPath := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "tried-by-a-test"}, Spec: corev1.PersistentVolumeSpec{
		Capacity:               corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
		AccessModes:            []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}},
	}}
	_, hostPathErr := core.CoreV1().PersistentVolumes().Create(ctx, hostPath, metav1.CreateOptions{DryRun: dryRun})
	for what, c := range map[string]struct {
		err     error
		allowed bool
	}{
		"label its node":                {label(one), true},
		"label another node":            {label(two), false},
		"set its pool's status":         {setStatus(one), true},
		"set another node's pool":       {setStatus(two), false},
		"take another node's directory": {hostPathErr, false},
	} {
		switch {
		case c.allowed && c.err != nil:
			t.Errorf("%s: %v, want that the driver may", what, c.err)
		case !c.allowed && !apierrors.IsForbidden(c.err) && !apierrors.IsInvalid(c.err):
			t.Errorf("%s: %v, want that it is refused", what, c.err)
		}
	}
}

// driverOf returns a client with the token of the driver of a node.
func driverOf(t *testing.T, node *cluster.Node) *rest.Config {
	t.Helper()
	pod := driverReady(t, node)
	token, err := api().CoreV1().ServiceAccounts(driverNamespace).CreateToken(ctx, release, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(lab.RESTConfig())
	config.BearerToken = token.Status.Token
	return config
}

// TestExamples applies deploy/examples unchanged, in the order of its README.
func TestExamples(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	t.Cleanup(func() {
		kubectl(t, "delete", "storageclass", "btrfs-compressed", "btrfs-ext4", "--ignore-not-found")
		kubectl(t, "delete", "volumegroupsnapshotclass", "btrfs", "--ignore-not-found")
	})
	for _, c := range []struct {
		file  string
		works func(*space)
	}{
		{"volume.yaml", func(s *space) {
			s.running("writer")
			eventually(s.T, "the greeting is there", func() error { _, err := s.try("writer", "grep -x hello /data/greeting"); return err })
		}},
		{"snapshot.yaml", func(s *space) { s.ready("data-snapshot") }},
		{"restore.yaml", func(s *space) {
			s.running("restored")
			eventually(s.T, "the greeting is another", func() error { _, err := s.try("restored", "grep -x 'hello again' /data/greeting"); return err })
			s.sh("writer", "grep -x hello /data/greeting")
		}},
		{"clone.yaml", func(s *space) {
			s.running("cloned")
			s.sh("cloned", "grep -x hello /data/greeting")
		}},
		{"read-only.yaml", func(s *space) {
			s.running("reader")
			s.sh("reader", "grep -x hello /data/greeting; ! touch /data/file")
		}},
		{"expand.yaml", func(s *space) {
			s.expanded("data", "2Gi")
			s.running("writer")
		}},
		{"storageclass.yaml", func(s *space) {
			s.running("logger")
			s.sh("logger", "grep ' /data btrfs .*noatime' /proc/mounts")
			handle := s.volume("logs").Spec.CSI.VolumeHandle
			node := node(s.T, s.running("logger").Spec.NodeName)
			if out := onNode(s.T, node, "btrfs property get /var/lib/btrfs-csi/pools/default/active/"+handle+"/fs compression"); out != "compression=zstd\n" {
				s.Errorf("the volume has %q", out)
			}
		}},
		{"block.yaml", func(s *space) {
			s.running("device")
			eventually(s.T, "the greeting is on the device", func() error {
				_, err := s.try("device", "dd if=/dev/data bs=5 count=1 2>/dev/null | grep -x hello")
				return err
			})
		}},
		{"ext4.yaml", func(s *space) {
			s.running("formatted")
			s.sh("formatted", "grep ' /data ext4 ' /proc/mounts")
			eventually(s.T, "df shows the volume", func() error { _, err := s.try("formatted", "grep ' /data$' /data/size"); return err })
		}},
		{"group-snapshot.yaml", func(s *space) {
			s.running("shop")
			if members := s.members("shop"); members["orders"] == nil || members["stock"] == nil {
				s.Errorf("the members are of %v", members)
			}
			kubectl(s.T, "delete", "--namespace", s.ns, "volumegroupsnapshot", "shop")
		}},
		{"ephemeral.yaml", func(s *space) {
			s.running("scratch")
			s.bound("scratch-data")
			s.deletePod("scratch")
			awaitGone(s.T, api().CoreV1().PersistentVolumeClaims(s.ns), "scratch-data", (*corev1.PersistentVolumeClaim)(nil))
		}},
	} {
		done := t.Run(c.file, func(t *testing.T) {
			s := s.in(t)
			s.apply(c.file)
			c.works(s)
		})
		if !done {
			return
		}
	}
	t.Run("delete", func(t *testing.T) {
		// Delete sources before their copies, which must stay usable.
		s := s.in(t)
		for _, file := range []string{"volume.yaml", "snapshot.yaml"} {
			kubectl(t, "delete", "--namespace", s.ns, "-f", examples(file))
		}
		s.sh("restored", "grep -x 'hello again' /data/greeting")
		s.sh("cloned", "grep -x hello /data/greeting")
		s.sh("reader", "grep -x hello /data/greeting")
	})
}
