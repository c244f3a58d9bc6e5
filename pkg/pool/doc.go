// Package pool makes a btrfs filesystem, or a directory of it, a pool of volumes: it manages the
// identity, directories, records, quota, free space, state and conditions. Package slot
// implements the operations on volumes.
//
// # Terms
//
//	pool    a directory on btrfs with its own ID; contains volumes and snapshots
//	area    a directory of a pool: one for each kind, and removing
//	slot    the directory <area>/<id>; bears the record and contains the subvolume fs
//	record  what was requested: name, kind, size, source, parameters, labels, state
//	ledger  the records of all slots of a pool; with the subvolumes, the truth
//
// # Layout
//
//	<state>/
//	├── known/<pool ID>             a file for each pool that was ever in use; contains its name
//	└── pools/
//	    └── <pool>/                 a btrfs is mounted here; default may be a subvolume or directory
//	        ├── pool.json           ID of the pool, version of this layout
//	        ├── active/<id>/fs      the record is an xattr of <id>/. Pods cannot reach it:
//	        ├── committed/<id>/fs   they see fs only
//	        ├── view/<id>/fs
//	        └── removing/<kind>-<id>/fs
//
// # Parts
//
// Host finds the pools of a node. Filesystem is the interface to one of them, Directory to its open
// directory: each method that changes something is one step. Pool is a Filesystem in use, whose
// operations share commits. Session is its Directory for one operation: it gives up look-ups that
// take too long, and explains errors.
package pool
