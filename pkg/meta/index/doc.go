// Package index stores the entries of all pools of a node in a bbolt file. It is a cache of
// the ledgers, plus a history of removals.
//
// # The file
//
//	meta
//	└── version                        1 byte: indexVersion
//	entries
//	└── <class> 0x00 <id> 0x00 <pool>  JSON Entry
//	children                           what was made from each source
//	└── <class> 0x00 <id> 0x00 <key of the child in entries>  (empty)
//	pools
//	└── <pool>                         JSON PoolState, as last seen
//	removed                            the last historyLimit removals
//	└── <sequence, big endian uint64>  JSON Removed
//
// <class> is volume or snapshot, <id> a safe name (see ID), <pool> the pool's UUID. Keys
// sort by class and ID, so a listing is one pass of a cursor.
//
// # Caveats
//
// The index is written without fsync. After a power cut it may be old or damaged, and a
// seal beside the file (seal.go) shows that. Open replaces an untrusted file by an empty
// one. At every start SyncPool makes the entries of a pool equal to its ledger. Only
// listings, the history, and the memory of absent pools depend on the index.
package index
