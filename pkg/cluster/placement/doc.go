// Package placement decides on which node something is made: a volume on that of its
// source, a snapshot on that of its volume. Where no node can make it, an Event says why.
//
//	claims.go         selects this node for the claims whose source is here
//	snapshots.go      assigns the snapshots of this node's volumes
//	unschedulable.go  Events on claims that no node can take; why.go has the reasons
package placement
