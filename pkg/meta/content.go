package meta

// Content is what a subvolume contains, and what pods get of it.
type Content string

const (
	// Files are the files of the pods. Pods get the subvolume itself.
	Files Content = ""
	// Block is a disk file that pods get as a raw block device.
	Block Content = "block"
	// Ext4 is a disk file with an ext4 filesystem, which pods get mounted.
	Ext4 Content = "ext4"
	// XFS is a disk file with an xfs filesystem, which pods get mounted.
	XFS Content = "xfs"
)

// IsDisk reports whether the subvolume contains a disk file. No pod gets the subvolume itself.
func (c Content) IsDisk() bool { return c != Files }

// Filesystem returns the type of the filesystem that pods get mounted; "" for none.
func (c Content) Filesystem() string {
	switch c {
	case Files:
		return "btrfs"
	case Block:
		return ""
	}
	return string(c)
}

// String returns the word that users see.
func (c Content) String() string {
	if c == Files {
		return "files"
	}
	return string(c)
}

func (c Content) valid() bool { return c == Files || c == Block || c == Ext4 || c == XFS }

// SectorSize divides the size of a disk file, in bytes.
const SectorSize = 4096

// MinSize returns the smallest size that mkfs accepts, in bytes. For ext4 it is that of a
// filesystem with a journal and room for files.
func (c Content) MinSize() int64 {
	const mib = 1 << 20
	switch c {
	case Ext4:
		return 16 * mib
	case XFS:
		return 300 * mib
	}
	return mib
}
