// Package components builds what a cluster for tests is made of, from Go modules
// and Debian packages alone: no registry is asked and nothing is run that was
// built elsewhere.
//
// [Build] makes a [Set]: kube-apiserver, kube-controller-manager, kube-scheduler,
// kubelet and kubectl (one binary under five names), etcd, containerd, the CNI
// plugins, and the images that pods run: pause, busybox, and the CSI sidecars under
// the names the chart has. [BuildSuite] adds Kubernetes' own end-to-end tests
// and the images those ask for.
//
// # Versions
//
// Each directory here that has a go.mod is a module of its own, since its programs
// agree with each other on dependencies and not with the rest of the repository:
// csi-provisioner v6.3.0 does not build against the client-go of the others. The
// version of a program is that in the go.mod, and nowhere else. What is built is listed
// there under tool, so that `go mod tidy` keeps the sums it takes. To bump one:
//
//	cd etcd && go get go.etcd.io/etcd/server/v3@v3.7.4 && go mod tidy
//
// Kubernetes requires its own libraries (k8s.io/api and more) at v0.0.0, which is
// only there in its own repository. go.mod excludes that version and requires the
// real one of each, so all are bumped together:
//
//	cd kubernetes && sed -i 's/ v1.37.2/ v1.37.3/; s/ v0.37.2/ v0.37.3/' go.mod && go mod tidy
//
// If a new release has a new library, the error names its v0.0.0: exclude that.
// The versions of the images for Kubernetes' tests are asked of those tests. busybox,
// runc and what else is not from a module are Debian's: see hack/deps.sh.
//
// The modules are kept tidy as all others are, but neither vetted nor tested: that
// would build the world.
//
// # The cache
//
// What was built stays in btrfs-csi/e2e of the user's cache directory ($XDG_CACHE_HOME,
// else ~/.cache), for all checkouts:
//
//	kubernetes-2f1c.../       a component: its programs
//	image-pause-91ab.../      an image: its archive
//	bin-c03d.../              hard links to the programs of all components: Set.Bin
//	lock                      held by the one who builds
//
// A name ends in a hash of all that makes up its content: the files of the module,
// the version and the target of Go, flags, files of this machine. An entry is
// made under a temporary name and renamed when it is whole. What was not used for 30
// days is removed when something else is built; the rest may be removed at any time.
//
// # Time and room
//
// From nothing, on 2 cores: 15 minutes for what a cluster runs, half of it Kubernetes,
// and 5 for the suite. That leaves 1.1 GB here, 3 GB of modules and 10 GB in Go's
// build cache, all of which may go but the first: with it Build returns in a tenth
// of a second. With Go's cache alone it takes a minute. GOMAXPROCS and nice(1) tame it.
package components
