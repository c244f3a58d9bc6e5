// Package placement selects the node for new volumes and snapshots: a volume goes to the node of its
// source, a snapshot to the node of its volume. If no node can make it, an Event says why.
//
//	claims.go         selects this node for claims whose source is on it
//	snapshots.go      assigns snapshots to the node of their volume
//	unschedulable.go  records Events on claims that no node can take; why.go has the reasons
package placement
