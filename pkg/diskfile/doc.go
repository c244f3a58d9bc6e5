// Package diskfile makes and grows the file of a block or disk volume. It knows nothing of
// CSI, of pools, or of who uses the file.
//
// The file is called Name and lies in the root directory of the volume's subvolume. It is
// sparse. Its size in bytes is the size of the device that pods get.
//
// Only Make ever runs mkfs, and only on a file without a name, which it has just made and
// nobody else can reach. The file gets its name afterwards. So whatever has the name is whole,
// but for a power cut, and was never formatted over something else.
package diskfile
