// Package expansion expands a volume from any node. The elected csi-resizer asks the driver of its
// own node. That driver writes the wanted size into the spec of the Subvolume. The node of the
// volume expands it and answers in the status.
package expansion
