// Command image makes the container image of the driver out of Debian packages and
// our binary. It needs apt and dpkg, but no container engine and no root.
//
// The file packages lists what the image has of Debian. It is the one definition,
// for `make image` and for the Dockerfile. The steps:
//
//  1. apt downloads those packages and all they depend on, for the architecture
//     that is asked for, into a directory of its own; neither the packages of this
//     machine nor its architectures matter.
//  2. They are unpacked, each for itself, without running any of their scripts.
//  3. The root filesystem takes the files that are listed, the libraries and the
//     loader that those name, and theirs; then, of each package that anything was
//     taken of, the licence and the record by which scanners know it.
//  4. Every program of the result must find its libraries there. Where this machine
//     can run them, they make filesystems in it.
//  5. Root filesystem and binary become an archive.
//
// The same packages and the same binary give the same digest.
package main
