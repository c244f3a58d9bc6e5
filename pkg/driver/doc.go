// Package driver serves the Container Storage Interface (CSI) on top of the engine.
// request.go and creation.go check requests, without I/O. controller.go and node.go call
// the engine and mount volumes. status.go maps errors to gRPC codes.
//
// A volume's ID is its name in CreateVolume, or a hash of an unsafe name. The topology of a
// volume is its pool, not its node: when a disk moves to another node, its volumes move
// with it.
package driver
