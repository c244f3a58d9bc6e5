// Package oci writes container images as archives that `ctr images import`,
// `docker load` and `podman load` take, without an engine.
//
// An [Image] is a list of files and how they are run; it becomes one layer. The
// same input gives the same bytes: entries are sorted, the directories above them
// are added, owners are numbers, and every time is that of SOURCE_DATE_EPOCH, or
// else 1970. Another release of Go may compress otherwise.
//
// The archive is an OCI image layout, in which each name of the image is a line of
// index.json, and holds Docker's manifest.json beside it, since docker load learned
// to read the layout alone only lately.
package oci
