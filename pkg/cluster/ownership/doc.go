// Package ownership decides, together with the drivers of the other nodes, which node serves a pool.
// The Pool names the owner. So two nodes never both serve copies of one disk.
//
//	controller.go  acquires the pools of this node, and releases those that are gone
//	acquire.go     the rules for the owner of a pool
//	conflicts.go   pools of this node that another node owns
//	labels.go      the topology labels, by which the scheduler finds the owner
package ownership
