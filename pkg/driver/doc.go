// Package driver serves the Container Storage Interface (CSI) on top of the engine.
//
// request.go and creation.go check requests, without I/O. controller.go and node.go call
// the engine. status.go maps errors to gRPC codes in one table. node.go mounts volumes at
// paths that pkg/mount has checked.
//
// A volume's ID is the name from its CreateVolume request if that is a safe name, and else
// a hash of it. The topology of a volume is its pool, not its node. When a disk moves to
// another node, its volumes move with it.
package driver
