// Package pooltest has pools for tests: Filesystem is a pool in memory that can crash, fail or
// fall silent at any step, Host a node of such pools, and Around puts code around each step of
// any pool.
//
// # The model
//
// A Filesystem has two states, current and durable. Every method that changes
// something is one step. Sync and Snapshot end by making the current state the
// durable one, as a btrfs commit does: whole, whoever made the changes. Kill
// keeps the current state, as the death of the process does; PowerCut goes back
// to the durable one.
package pooltest
