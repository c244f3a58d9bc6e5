// Package ownership decides with the drivers of the other nodes which node serves a pool.
// The owner of a pool is written in its Pool. No two live nodes own one: a disk may be
// copied, with its volumes.
//
//	controller.go  acquires the pools of this node, and releases those that are gone
//	acquire.go     the rules by which one of two nodes owns a pool
//	conflicts.go   pools of this node that another one owns
//	labels.go      the topology labels, by which the scheduler finds the owner
package ownership
