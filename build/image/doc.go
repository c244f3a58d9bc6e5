// Command image makes the container image of the driver from Debian packages and
// the binary. It needs apt and dpkg, but no container engine and no root.
//
// The file packages lists the Debian packages of the image and what is kept of them,
// for `make image` and for the Dockerfile. The steps:
//
//  1. apt downloads the packages and their dependencies, for the wanted architecture,
//     into a separate directory. The packages of this machine do not matter.
//  2. Each package is unpacked into its own directory. No scripts run.
//  3. The root filesystem gets the listed files and, recursively, the libraries and the
//     loader that they need. For each package that contributes a file it also gets the
//     licence and the record by which scanners identify the package.
//  4. Each program must find its libraries there. If this machine can run them, they
//     make filesystems in it.
//  5. The root filesystem and the binary become an archive.
//
// The same packages and the same binary give the same digest.
//
// A release has more: the index of the images of all architectures, bills of materials,
// checksums. What it is made of comes from the state that Debian had on the day before the
// commit, out of Debian's archive of snapshots: the packages, and also the C compiler and
// the C library that the driver is linked with. So whoever has the commit gets the digest.
package main
