// Package pooltest provides pools for tests. Filesystem is a pool in memory that can crash, fail
// or fall silent at any step. Host is a node of such pools. Around runs code around each step of
// any pool.
//
// # The model
//
// A Filesystem has two states, current and durable. Every method that changes something is one
// step on the current state. A commit copies the current state, with the changes of all
// operations, to the durable one. Snapshot commits; Sync and SyncRoot do so in some cases (see
// Filesystem). Kill keeps the current state, as the death of the process does. PowerCut goes back
// to the durable one.
package pooltest
