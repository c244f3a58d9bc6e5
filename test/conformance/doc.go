// Package conformance holds the engine against containerd's own contract of a
// snapshotter: package snapshotter gives it containerd's interface, and the tests
// run containerd's public suite (core/snapshots/testsuite) on that, on a real
// btrfs. It is a module of its own so that containerd is no dependency of the
// driver.
//
// # What is proved
//
// All 21 cases of the suite pass, in each quota mode: none, full and simple.
//
//	life of a snapshot  Basic, StatActive, StatComitted, TransitivityTest, CloseTwice
//	names               PreareViewFailingtest, Remove
//	lineage             RemoveIntermediateSnapshot, 128LayersMount
//	labels, listing     Update, Walk, StatInWalk
//	contents            LayerFileupdate, RemoveDirectoryInLowerLayer, Chown, Rename,
//	                    DirectoryPermissionOnCommit, DeletedFilesInChildSnapshot,
//	                    MoveFileFromLowerLayer, RootPermission
//	read-only           ViewReadonly
//
// (These are the suite's spellings.) They pass on containerd's own snapshotter of
// btrfs too, which is run beside ours: a case that fails on both says nothing of
// the engine.
//
// What the suite leaves open is proved here:
//
//	TestRefusals   25 refusals, of the class that containerd's snapshotter gives,
//	               on both; none leaves anything behind
//	TestUsage      what a snapshot holds beyond its parent, in each quota mode
//	TestReopen and those below it
//	               everything is there after a restart, labels that were updated
//	               too; half a commit, foreign volumes, labels that do not fit
//	TestConcurrent of many that want the same key one gets it; no parent goes
//	               while a child is made
//	TestCommits    the adapter costs no commit of the filesystem
//
// # What is not
//
// The suite knows no crash, no power cut and no full disk, and never asks for
// Usage; the first three are tested on the engine, in pkg/snapshot. containerd
// itself, its garbage collection and its image unpacking are not run. The optional
// Cleaner and the capability to change the parent at Commit are not there.
package conformance
