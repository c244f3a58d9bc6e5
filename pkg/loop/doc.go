// Package loop puts files behind loop devices. It is independent of CSI, btrfs and of what
// the files contain.
//
// # Which device is that of a file
//
// The kernel is the only memory. LOOP_GET_STATUS64 reports the device number and the inode
// number of the file behind a device, as fstat(2) reports them for the file. While the
// device has the file open neither number changes. So Find needs no record of its own, and
// is right after the process has died, after a rename of the file, and whatever paths other
// mount namespaces see.
//
// Somebody else's file may lie on a network or FUSE filesystem that does not answer, and
// LOOP_GET_STATUS64 would wait for it. So Find first reads the names of the files in sysfs,
// which the kernel has in memory, and asks only the devices whose file has the right base
// name.
//
// # Life of a device
//
// Attach returns a Device that is open. Until Keep, the device ends by itself when nobody
// has it open (LO_FLAGS_AUTOCLEAR): neither this process nor a mounted filesystem. So a
// process that dies between two steps leaves no device behind. After Keep the device stays
// until Detach.
package loop
