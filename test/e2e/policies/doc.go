// Package policies attacks the API server of a real Kubernetes with the token of one node's driver. The cluster has
// the installed chart and objects of two nodes that do not exist. No controller runs.
//
// The tests try each right in the roles of the driver on objects of its own node, of another node and of no node.
// They change and remove every field, and add others. Each object lists the allowed changes. The API server has
// to refuse all others. A right that no test uses fails the test.
package policies
