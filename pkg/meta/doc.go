// Package meta holds what btrfs-csi knows about a subvolume beyond the
// subvolume itself: its Record. It builds on every system.
//
// # Terms
//
//	record   what was asked for: name, kind, size, source, parameters, labels
//	lineage  what btrfs knows by itself: subvolume ID, UUIDs, creation transaction
//	ledger   where a record lives: the xattr LedgerXattr on the directory that
//	         holds the subvolume. The ledger is the truth
//	entry    record and lineage of one subvolume in one pool
//	index    a bbolt file over the entries of all pools (pkg/meta/index)
//
// The lineage is never written to the ledger: a copy beside the original can
// only ever be wrong.
package meta
