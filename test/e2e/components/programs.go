package components

import (
	"path/filepath"
	"slices"
)

// component is the programs of one module. It is one entry of the cache.
type component struct {
	name     string
	dir      string // of the module, below that of this package
	takes    string // time with empty caches on 2 cores, for the log
	programs []program
}

// program is one program of a component.
type program struct {
	names  []string // several if the program acts by its name
	pkg    string
	module string // the module whose version it has; "" if it is ours
	stamp  string // linker flags, with the placeholders VERSION, MAJOR and MINOR
	tags   string
	test   bool // the program is the package's test binary
}

const (
	kubernetesModule = "k8s.io/kubernetes"
	kubernetesStamp  = "-X k8s.io/component-base/version.gitVersion=VERSION" +
		" -X k8s.io/component-base/version.gitMajor=MAJOR -X k8s.io/component-base/version.gitMinor=MINOR" +
		" -X k8s.io/client-go/pkg/version.gitVersion=VERSION" +
		" -X k8s.io/client-go/pkg/version.gitMajor=MAJOR -X k8s.io/client-go/pkg/version.gitMinor=MINOR"

	containerd  = "github.com/containerd/containerd/v2"
	etcd        = "go.etcd.io/etcd/server/v3"
	cniPlugins  = "github.com/containernetworking/plugins"
	provisioner = "github.com/kubernetes-csi/external-provisioner/v6"
	resizer     = "github.com/kubernetes-csi/external-resizer/v2"
	snapshotter = "github.com/kubernetes-csi/external-snapshotter/v8"
)

// controlPlane are the components of a cluster without nodes.
var controlPlane = []component{
	{name: "kubernetes", dir: "kubernetes", takes: "8 min", programs: []program{{
		names:  []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl"},
		pkg:    ".",
		module: kubernetesModule,
		stamp:  kubernetesStamp,
	}}},
	{name: "etcd", dir: "etcd", takes: "30 s", programs: []program{
		{names: []string{"etcd"}, pkg: etcd, module: etcd},
	}},
}

// cluster are the components of a cluster.
var cluster = slices.Concat(controlPlane, []component{
	{name: "containerd", dir: "containerd", takes: "2 min", programs: []program{
		containerdProgram("containerd"), containerdProgram("containerd-shim-runc-v2"), containerdProgram("ctr"),
	}},
	{name: "cni", dir: "cni", takes: "10 s", programs: []program{
		cniPlugin("main/bridge"), cniPlugin("main/loopback"), cniPlugin("ipam/host-local"), cniPlugin("meta/portmap"),
	}},
	{name: "provisioner", dir: "provisioner", takes: "2 min", programs: []program{
		sidecar(provisioner, "csi-provisioner"),
	}},
	{name: "sidecars", dir: "sidecars", takes: "3 min", programs: []program{
		sidecar(snapshotter, "csi-snapshotter"), sidecar(snapshotter, "snapshot-controller"), sidecar(resizer, "csi-resizer"),
	}},
	{name: "pause", dir: "pause", takes: "1 s", programs: []program{
		{names: []string{"pause"}, pkg: "."},
	}},
})

// suite are the components of Kubernetes' end-to-end tests.
var suite = []component{
	{name: "kubernetes-e2e", dir: "kubernetes", takes: "5 min", programs: []program{
		{names: []string{"e2e.test"}, pkg: kubernetesModule + "/test/e2e", module: kubernetesModule, stamp: kubernetesStamp, test: true},
		{names: []string{"agnhost"}, pkg: kubernetesModule + "/test/images/agnhost", module: kubernetesModule},
		{names: []string{"ginkgo"}, pkg: "github.com/onsi/ginkgo/v2/ginkgo", module: "github.com/onsi/ginkgo/v2"},
	}},
}

// containerdProgram leaves out the snapshotters that need a device or a certain filesystem.
func containerdProgram(name string) program {
	return program{
		names: []string{name}, pkg: containerd + "/cmd/" + name, module: containerd,
		stamp: "-X " + containerd + "/version.Version=VERSION", tags: "no_btrfs no_devmapper no_zfs",
	}
}

func cniPlugin(name string) program {
	return program{
		names: []string{filepath.Base(name)}, pkg: cniPlugins + "/plugins/" + name, module: cniPlugins,
		stamp: "-X " + cniPlugins + "/pkg/utils/buildversion.BuildVersion=VERSION",
	}
}

func sidecar(module, name string) program {
	return program{names: []string{name}, pkg: module + "/cmd/" + name, module: module, stamp: "-X main.version=VERSION"}
}
