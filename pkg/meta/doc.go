// Package meta defines what btrfs-csi stores about a subvolume. It builds on every system.
//
// # Terms
//
//	record   the request: name, kind, size, source, parameters, labels
//	lineage  what btrfs itself stores: subvolume ID, UUIDs, creation transaction
//	ledger   the xattr LedgerXattr on the directory that contains the subvolume. It
//	         stores the record and is the only source of truth
//	entry    record and lineage of one subvolume in one pool
//	index    a bbolt file of the entries of all pools (pkg/meta/index)
//
// The lineage is never written to the ledger: a copy could become wrong.
package meta
