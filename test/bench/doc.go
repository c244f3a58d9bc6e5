// Command bench compares btrfs-csi with containerd's btrfs snapshotter, the raw
// ioctls and a copy of the files, in one run on one machine. It is a separate module,
// so that its dependencies are not the driver's.
//
// # Terms
//
//	rig      a new filesystem in a sparse file
//	side     one of those that are compared: the driver, its engine, containerd, the ioctls
//	stand    a side on a rig
//	contest  several stands that do the same in turn, round after round
//	part     a part of the benchmark that can run alone
//	row      one comparison with a peer: the median of the rounds, and a ratio that is
//	         above 1 if ours is better
//
// # Fairness
//
// A round uses a new filesystem, or one from which all additions were removed. The
// order of the sides changes with every round. Before a timed part everything is
// synced, and the kernel's cleaner has dropped destroyed subvolumes, so that no side
// pays for another. Existing volumes are empty, which is the best case for peers that
// walk files.
//
// # Limits
//
// All sides share the processors with their caller, the driver with a gRPC client.
// Loop devices add the same layer below each filesystem.
package main
