// Package policies attacks the API server of a real Kubernetes with the token of
// one node's driver. The chart is installed and there is nothing else: objects alone,
// of two nodes that do not exist, and no controller that would put them right.
//
// What is attacked comes from the roles that the driver has: each verb on each
// resource is tried on objects of its own node, of another one and of nobody, with
// every field of them changed, removed or added to. What may be changed is listed
// with the object; the rest has to be refused. A right that nobody attacks fails
// the test.
package policies
