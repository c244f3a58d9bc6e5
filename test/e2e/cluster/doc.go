// Package cluster is a real Kubernetes of several nodes on one machine, without
// containers around it and without a registry: etcd, the control plane and, for
// each node, containerd and kubelet. It needs root, and what package components
// builds.
//
// # Processes
//
//	the test, as go test starts it     waits, passes signals on, cleans up
//	└── lab, pid 1                     ends with the test and reaps
//	    ├── the same test again        runs the tests, and all that is below
//	    ├── etcd, kube-apiserver, kube-controller-manager, kube-scheduler
//	    ├── node1, pid 1               boots, starts its services again, reaps
//	    │   ├── containerd             its shims and pods
//	    │   └── kubelet
//	    └── node2, pid 1 ...
//
// The lab and each node have network, mount, pid, ipc and uts namespaces of their
// own. So the end of the first process ends them all, with their mounts and
// networks, whether it returned, panicked or was killed. What the kernel leaves are
// loop devices of block volumes, cgroups and files: the outermost process removes
// them, or the next one to start where that was killed, or Clean.
//
// # Network
//
//	10.250.0.1         the lab, on a bridge: the API server, port 443
//	10.96.0.1          the same, as the ClusterIP of the Service "kubernetes"
//	10.250.0.11        node1, whose pods have 10.244.1.0/24
//	10.250.0.12        node2, whose pods have 10.244.2.0/24
//
// There is no kube-proxy and no DNS: pods reach the API server and each other by
// address, and no Service but that one. Nothing reaches the world outside.
//
// # Files
//
//	/var/tmp/btrfs-csi-e2e/<lab>/
//	  lock              held by the outermost process as long as it lives
//	  pids              of that process and of the lab's first
//	  components.json   what was built
//	  kubeconfig        of an administrator
//	  pki/              certificates, keys, kubeconfigs of the control plane
//	  log/              of all components, and of the pods of each node
//	  etcd/             a tmpfs
//	  disks/<n>.img     a disk with a btrfs filesystem, sparse
//	  node1/            its certificate and kubeconfig
//	    boot.json       what it does when it boots
//	    config/         of its services
//	    root/           its root: an overlay over the machine's, ...
//	    upper/          ... where it writes: a tmpfs
//	    disk/           what outlives a reboot: kubelet, containerd, cni, btrfs-csi
//	      btrfs-csi/pools/<pool>   where the lab mounts a disk
//
// Beside them, .log/ has the logs of labs that failed. "cluster clean" removes it.
//
// The lab mounts the pools, and the mounts propagate into the node. So the
// filesystem stays mounted when all of the node is killed, and what had reached its
// device by then is copied before anything is written back: a power cut. Every boot
// has an ID of its own, in containers too, as a machine's has.
//
// # Tests
//
//	func TestMain(m *testing.M) { os.Exit(cluster.Main(m.Run)) }
//
//	func TestSomething(t *testing.T) {
//		c, err := cluster.Start(t.Context(), cluster.Options{Log: t.Output()})
//		...
//		defer c.Stop()
//
// Those of this repository have the build tag e2e, since they want all that is built
// for them: make e2e runs them, and make test says that there are no test files.
//
// # Caveats
//
// The nodes share the machine's kernel: its clock, its /dev, its loop devices and
// its page cache. A power cut loses what a pool had not written, but not what
// kubelet, containerd or the driver's index had not.
package cluster
