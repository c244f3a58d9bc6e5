package snapshot

import (
	"fmt"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
)

// checkContent fails if a volume with this content cannot be a copy of from.
func checkContent(want meta.Content, from *slot.Slot) error {
	has, ref := from.Record.Content, from.Record.Ref()
	switch {
	case has.IsDisk():
		return fmt.Errorf("%s contains a disk file (%s): %w: snapshots and copies of block, ext4 and xfs volumes are not there yet", ref, has, ErrInvalid)
	case want != has:
		return fmt.Errorf("%s contains %s, %s is wanted: %w: ask for the volume mode and the fsType of the source", ref, has, want, ErrInvalid)
	}
	return nil
}

// checkDisk fails for a size that no disk file with this content can have.
func checkDisk(content meta.Content, size int64) error {
	switch least := content.MinSize(); {
	case !content.IsDisk():
		return nil
	case size < least:
		return fmt.Errorf("%d bytes wanted, the least size with %s is %d: %w", size, content, least, ErrOutOfRange)
	case size%meta.SectorSize != 0:
		return fmt.Errorf("%d bytes wanted, %s wants a multiple of its sectors of %d bytes: %w", size, content, meta.SectorSize, ErrOutOfRange)
	}
	return nil
}
