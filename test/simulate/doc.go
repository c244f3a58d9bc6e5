// Package simulate runs a cluster of real drivers in one process and in virtual time. All that
// happens to it follows from one seed.
//
//	plan.go         what happens, drawn from a seed
//	run.go          one run: the scheduler, its steps, and the end, when everything settles
//	gate.go         where all that reaches out of a process waits for the scheduler
//	network.go      what is between a process and the API server
//	view.go         the cluster at one moment, for the rules
//	node.go         a machine and the processes of its driver
//	disks.go        disks, and where they are
//	kubelet.go      pods and the kubelet
//	worker.go       a component of Kubernetes or a sidecar, as a rule
//	sidecars.go     provisioner, snapshotter, resizer
//	controllers.go  claims and volumes, the scheduler of pods, the snapshot-controller
//	faults.go       what users, administrators and accidents do
//	facts.go        what the driver has acknowledged
//	promises.go     what has to hold after each step, and in the end
//	mends.go        old faults, which have to be found
//	document.go     the figures in docs/reliability.md
//
// A run is a bubble of testing/synctest. Its time goes on only when everything waits. Real are
// the index files, the directories and the mounts, which the kernel answers at once.
package simulate
