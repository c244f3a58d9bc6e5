package btrfstest

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
)

// The superblock: struct btrfs_super_block of linux/btrfs_tree.h.
const (
	superAt         = 64 << 10
	superSize       = 4096
	superFSID       = 0x20
	superMagic      = 0x40
	superIncompat   = 0xbc
	superChecksum   = 0xc4 // its type
	superMetadataID = 0x23b
	uuidSize        = 16

	metadataUUID = 1 << 10 // BTRFS_FEATURE_INCOMPAT_METADATA_UUID
)

// Rename gives a copy of an image a random filesystem ID, so that every kernel mounts it beside
// its original. An exact copy mounts there from Linux 6.7 on. Only the superblock changes, as
// with btrfstune -m: what a power cut has left in the image stays as it is.
func Rename(image string) error {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	super := make([]byte, superSize)
	_, err = f.ReadAt(super, superAt)
	if err == nil {
		err = renameSuper(super)
	}
	if err == nil {
		_, err = f.WriteAt(super, superAt)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("rename the filesystem of %s: %w", image, err)
	}
	return nil
}

func renameSuper(super []byte) error {
	if !bytes.HasPrefix(super[superMagic:], []byte("_BHRfS_M")) {
		return errors.New("it is no btrfs")
	}
	if kind := binary.LittleEndian.Uint16(super[superChecksum:]); kind != 0 {
		return fmt.Errorf("its checksums are of type %d; crc32c is wanted", kind)
	}
	fsid := super[superFSID : superFSID+uuidSize]
	incompat := binary.LittleEndian.Uint64(super[superIncompat:])
	if incompat&metadataUUID == 0 { // the ID that is in every block
		copy(super[superMetadataID:], fsid)
		binary.LittleEndian.PutUint64(super[superIncompat:], incompat|metadataUUID)
	}
	rand.Read(fsid)
	binary.LittleEndian.PutUint32(super, crc32.Checksum(super[superFSID:], crc32.MakeTable(crc32.Castagnoli)))
	return nil
}
