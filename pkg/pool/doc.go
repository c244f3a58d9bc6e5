// Package pool is one btrfs filesystem, or a directory of it, as a pool of volumes: its
// identity, its directories, the records in them, quota, room, state and conditions. It knows nothing of
// what a volume goes through: see package snapshot.
//
// # Terms
//
//	pool    a directory on btrfs with an ID of its own; contains volumes and snapshots
//	area    a directory of a pool: one for each kind, and removing
//	slot    <area>/<id>, the directory that bears the record and contains the subvolume fs
//	ledger  the records of all slots of a pool; with the subvolumes, the truth
//
// # Layout
//
//	<state>/
//	├── known/<pool ID>             the name of each pool that ever was in use
//	└── pools/
//	    └── <pool>/                 a btrfs is mounted here; default may be a subvolume or directory
//	        ├── pool.json           ID of the pool, version of this layout
//	        ├── active/<id>/fs      <id>/ bears the record as an xattr, out of
//	        ├── committed/<id>/fs   reach of the pods, which see fs only
//	        ├── view/<id>/fs
//	        └── removing/<kind>-<id>/fs
//
// # Parts
//
// Host finds the pools of a node. A Filesystem is what one of them can do: each method that
// changes something is one step of the kernel's. Pool is a Filesystem in use: it gives up
// look-ups that take too long, says what an error means for a request, and has operations
// share commits.
package pool
