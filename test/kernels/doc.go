// Command kernels runs tests of the driver on the kernels of Debian and Ubuntu releases, each in
// a virtual machine without hardware support (QEMU's TCG), so that it needs nothing of the
// machine but time. What came of it goes into docs/kernels.md.
//
// A guest has the kernel and the userland of one release, as apt has them today, in an
// initramfs. The tests are static binaries on a disk of their own. What they print comes back
// on another disk, as a tar.
package main
