package snapshot

import (
	"fmt"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
)

// checkContent fails if a volume with this content cannot be a copy of from. A disk file with a
// filesystem can be had as a block device, and the reverse. What a block device contains is seen
// when it is mounted.
func checkContent(kind meta.Kind, want meta.Content, from *slot.Slot) error {
	has, ref := from.Record.Content, from.Record.Ref()
	switch {
	case kind == meta.Committed:
		return nil
	case kind == meta.View && has.IsDisk():
		return fmt.Errorf("%s contains a disk file (%s): %w: read-only volumes of it are not there yet; make a writable one", ref, has, ErrInvalid)
	case want == has, want.IsDisk() && has == meta.Block, want == meta.Block && has.IsDisk():
		return nil
	}
	return fmt.Errorf("%s contains %s, %s is wanted: %w: ask for the volume mode and the fsType of the source", ref, has, want, ErrInvalid)
}

// checkDisk fails for a size that no disk file with this content can have. source is the size of
// its source, 0 for none.
func checkDisk(content meta.Content, size, source int64) error {
	switch least := content.MinSize(); {
	case !content.IsDisk():
		return nil
	case source > 0 && size > source:
		return fmt.Errorf("%d bytes wanted, but a copy of a disk file has the size of its source, %d: %w: larger copies are not there yet", size, source, ErrOutOfRange)
	case size < least:
		return fmt.Errorf("%d bytes wanted, the least size with %s is %d: %w", size, content, least, ErrOutOfRange)
	case size%meta.SectorSize != 0:
		return fmt.Errorf("%d bytes wanted, %s wants a multiple of its sectors of %d bytes: %w", size, content, meta.SectorSize, ErrOutOfRange)
	}
	return nil
}
