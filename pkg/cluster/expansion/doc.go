// Package expansion grows a volume from any node. The driver that is asked, which is that of
// the elected resizer, writes the wanted size into the spec of the Subvolume; the owner
// grows the volume and answers in the status.
package expansion
