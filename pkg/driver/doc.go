// Package driver serves the Container Storage Interface on top of the engine.
// It is the only package that knows of grpc.
//
// A request is read by request.go, which is pure and refuses what makes no
// sense; handed to the engine by controller.go and node.go; and an error of the
// engine's becomes a code in status.go, in one table. Mounts are made in
// node.go, on paths that target.go has proved safe.
//
// A volume's ID is the name that the CO chose for it, where that is a safe name.
// The topology of a volume is its pool, not its node: when a disk moves to
// another node, its volumes follow.
package driver
