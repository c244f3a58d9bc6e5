// Command bench measures btrfs-csi beside containerd's btrfs snapshotter, the raw
// ioctls and a copying driver, in one run on one machine, and holds the numbers
// against each other. It is a module of its own so that what it imports is no
// dependency of the driver.
//
// # Terms
//
//	rig      a filesystem of its own: fresh, in a sparse file
//	side     who is compared: the driver, its engine, containerd's, the ioctls
//	stand    a side on a rig
//	contest  several stands that do the same in turn, round after round
//	part     a piece of the benchmark, which can be run by itself
//	row      one comparison, ours against a peer's: the median of the rounds, and a
//	         ratio that is above 1 where ours is better
//
// # What is held equal
//
// A round is on a fresh filesystem, or on one that all that was added is taken away
// from. The order of the sides changes every round. Before a timed part everything
// is synced, and the kernel's cleaner has dropped what was destroyed, so that no
// one pays for another. What is only there, existing volumes, is empty: that is the
// best case for peers that walk files.
//
// # Limits
//
// All sides share the processors with who asks them, the driver with a client of
// gRPC. Loop devices add a layer below each filesystem, the same for all.
package main
