// Package index is a bbolt file over the entries of all pools of a node: a cache of
// what their ledgers say, plus history.
//
// # The file
//
//	meta
//	└── version                        1 byte: indexVersion
//	entries
//	└── <class> 0x00 <id> 0x00 <pool>  JSON Entry
//	children                           who was made from whom
//	└── <class> 0x00 <id> 0x00 <key of the child in entries>  (empty)
//	pools
//	└── <pool>                         JSON PoolState, as it was when last seen
//	removed                            history, the newest historyLimit removals
//	└── <sequence, big endian uint64>  JSON Removed
//
// <class> is volume or snapshot, <id> a safe name (see ID), <pool> the pool's
// UUID. Keys sort by class and ID, so that a listing is one cursor walk.
//
// # Caveats
//
// The index is written without fsync: after a power cut it may be old or
// damaged. A seal beside the file (seal.go) shows that; Open starts an empty one
// when the file cannot be trusted, and SyncPool brings the entries of a pool in
// line with its ledger at every start. Nothing but listings, the history, and the
// memory of pools that are away depends on it.
package index
