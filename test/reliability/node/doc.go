// Package node has a machine with one pool: its driver, its state directory, its kubelet
// directory and the filesystem of its pool. A Node compares what is on its disk, in its index, in
// its mount table and among its qgroups with a model.
//
// The driver is a process, or runs in this process (inside.go), where it starts within
// milliseconds and a test can act between its steps. Package nodetest builds the process for tests.
package node
