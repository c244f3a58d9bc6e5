// Package client has what all controllers of a node read of the cluster, and the clients
// through which they write. It decides nothing.
//
//	clients.go     typed clients of the API server
//	cluster.go     caches of the cluster's objects, their indexes, and the recorder of Events
//	identity.go    which objects are of this driver
//	names.go       names, kinds, annotations and labels
//	source.go      what a claim is made from
//	references.go  what stands for a volume or snapshot
//	locate.go      which node has a volume or snapshot
package client
