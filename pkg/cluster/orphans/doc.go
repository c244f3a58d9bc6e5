// Package orphans finds the volumes and snapshots of a node for which nothing in the cluster
// stands, and the PersistentVolumes whose volume is missing. It deletes orphans only where
// the policy says so, and then reluctantly: a cluster may forget more than is gone.
package orphans
