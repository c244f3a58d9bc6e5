// Package snaptest tests package snapshot: Filesystem is a pool in memory that
// can crash at any step, Host a node of such pools, and Run the suite that every
// Filesystem and Host must pass with the engine above it.
//
// # The model
//
// A Filesystem has two states, current and durable. Every method that changes
// something is one step. Sync and Snapshot end by making the current state the
// durable one, as a btrfs commit does: whole, whoever made the changes. Kill
// keeps the current state, as the death of the process does; PowerCut goes back
// to the durable one.
package snaptest
