// Package components builds the programs and images of a cluster for tests, from Go modules and Debian packages
// alone. It uses no image registry and no binary that was built elsewhere.
//
// [Build] makes a [Set]: kube-apiserver, kube-controller-manager, kube-scheduler,
// kubelet and kubectl (one binary under five names), etcd, containerd, the CNI
// plugins, and the images of pods: pause, busybox, and the CSI sidecars under the names in the chart.
// [BuildSuite] adds Kubernetes' own end-to-end tests and their images.
//
// # Versions
//
// Each directory here with a go.mod is a module of its own, because its programs need other dependencies than
// the rest of the repository. For example csi-provisioner v6.3.0 does not build with the client-go of the
// others. Only go.mod has the version of a program. It lists the programs under tool, so that `go mod tidy`
// keeps their sums. To bump a version:
//
//	cd etcd && go get go.etcd.io/etcd/server/v3@v3.7.4 && go mod tidy
//
// Kubernetes requires its own libraries (k8s.io/api and more) at v0.0.0, which exists only in its own
// repository. go.mod excludes that version and requires the real one of each. Bump all together:
//
//	cd kubernetes && sed -i 's/ v1.37.2/ v1.37.3/; s/ v0.37.2/ v0.37.3/' go.mod && go mod tidy
//
// If a new release has a new library, the error names its v0.0.0. Exclude that. Kubernetes' tests print the
// versions of their images. busybox, runc and other programs without a module are Debian's; see hack/deps.sh.
//
// These modules are kept tidy, but neither vetted nor tested, because that would build all of Kubernetes.
//
// # The cache
//
// The cache for all checkouts is btrfs-csi/e2e in the user's cache directory ($XDG_CACHE_HOME, else ~/.cache):
//
//	kubernetes-2f1c.../       a component: its programs
//	image-pause-91ab.../      an image: its archive
//	bin-c03d.../              hard links to the programs of all components: Set.Bin
//	lock                      locked by the process that builds
//
// A name ends in a hash of everything that determines the content: the files of the module, the version and the
// target of Go, flags, files of this machine. An entry has a temporary name until it is complete. A build
// removes entries that were not used for 30 days. You may remove all others at any time.
//
// # Time and room
//
// With empty caches, on 2 cores, the components of a cluster take 15 minutes, half of it for Kubernetes, and the
// suite 5. The cache then has 1.1 GB, the modules 3 GB, and Go's build cache 10 GB. Only the first is needed
// later: with it Build returns in a tenth of a second. With Go's caches alone it takes a minute. GOMAXPROCS
// and nice(1) limit the load.
package components
