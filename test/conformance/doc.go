// Package conformance tests the engine against containerd's contract of a
// snapshotter. Package snapshotter gives the engine containerd's interface, and the
// tests run containerd's public suite (core/snapshots/testsuite) on it, on a real
// btrfs. It is a separate module, so that containerd is no dependency of the driver.
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
// (The spellings are those of the suite.) The same cases run on containerd's own btrfs
// snapshotter and pass there, too. If a case fails on both, the engine is not the cause.
//
// Further tests prove what the suite does not:
//
//	TestRefusals   25 calls fail with the same class of error on both, and change
//	               nothing
//	TestUsage      the space that a snapshot uses besides its parent, in each quota mode
//	TestReopen and those below it
//	               everything exists after a restart, also updated labels; half a
//	               commit, foreign volumes, labels that do not fit
//	TestConcurrent one of many callers gets a key; no parent is removed while a child
//	               is created
//	TestCommits    the adapter causes no commit of the filesystem
//
// # What is not proved
//
// The suite has no crash, no power cut and no full disk. pkg/snapshot tests these on
// the engine. containerd itself, its garbage collection and its unpacking of images do
// not run. The optional Cleaner, and a change of the parent by Commit, are not
// implemented.
package conformance
