// Package client has the caches that all controllers of a node read, and the clients through
// which they write. It makes no decisions.
//
//	clients.go     typed clients of the API server
//	cluster.go     caches of the cluster's objects, their indexes, and the recorder of Events
//	identity.go    which objects belong to this driver
//	names.go       names, kinds, annotations and labels
//	source.go      the source of a claim
//	references.go  the objects that refer to a volume or snapshot
//	locate.go      which node has a volume or snapshot
package client
