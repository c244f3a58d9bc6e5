// Package cluster runs a real Kubernetes of several nodes on one machine, without containers around it and
// without a registry: etcd, the control plane and, for each node, containerd and kubelet. It needs root,
// and the programs of package components.
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
// The lab and each node have network, mount, pid, ipc and uts namespaces of their own. When the first process
// of one ends, in whatever way, the kernel ends all its processes, mounts and networks. It does not remove
// loop devices of block volumes, cgroups and files. The outermost process removes them. If that was killed, the
// next one does when it starts, or Clean.
//
// # Network
//
//	10.250.0.1         the lab, on a bridge: the API server, port 443
//	10.96.0.1          the same, as the ClusterIP of the Service "kubernetes"
//	10.250.0.11        node1, whose pods have 10.244.1.0/24
//	10.250.0.12        node2, whose pods have 10.244.2.0/24
//
// There is no kube-proxy and no DNS. Pods reach each other by address, and of all Services only
// "kubernetes". No packet leaves the machine.
//
// # Files
//
//	/var/tmp/btrfs-csi-e2e/<lab>/
//	  lock              locked by the outermost process as long as it lives
//	  pids              of that process and of pid 1 of the lab
//	  components.json   the paths of what was built
//	  kubeconfig        of an administrator
//	  pki/              certificates, keys, kubeconfigs of the control plane
//	  log/              of all components, and of the pods of each node
//	  etcd/             a tmpfs
//	  disks/<n>.img     a disk with a btrfs filesystem, sparse
//	  node1/            its certificate and kubeconfig
//	    boot.json       its boot, as the lab plans it
//	    config/         of its services
//	    root/           its root: an overlay over the machine's, ...
//	    upper/          ... where it writes: a tmpfs
//	    disk/           what outlives a reboot: kubelet, containerd, cni, btrfs-csi
//	      btrfs-csi/pools/<pool>   where the lab mounts a disk
//
// Beside them, .log/ has the logs of labs that failed. "cluster clean" removes it.
//
// The lab mounts the pools, and the mounts propagate into the node. So a pool stays mounted when its node is
// killed. For a power cut the lab then copies the disk, before the kernel writes back what it has in memory.
// Every boot has an ID of its own, also in containers.
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
// The tests of this repository have the build tag e2e, because they need everything that make e2e builds.
// For make test there are no test files.
//
// # Caveats
//
// The nodes share the kernel of the machine: its clock, its /dev, its loop devices and its page cache. A
// power cut loses the unwritten data of a pool, but not that of kubelet, containerd or the driver's index.
package cluster
