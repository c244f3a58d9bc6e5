package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// bulkBuffer is for scans. It takes about a thousand qgroups in one ioctl.
	bulkBuffer = 64 << 10
	// itemBuffer is for single items. The largest is an inode item of 160 bytes, with a
	// header.
	itemBuffer = 512
)

// itemKey is a key of a btrfs tree. Keys are ordered by objectID, then itemType, then
// offset.
type itemKey struct {
	objectID uint64
	itemType uint32
	offset   uint64
}

// next returns the smallest key after k. ok is false when there is none.
func (k itemKey) next() (_ itemKey, ok bool) {
	const maxType = 255
	switch {
	case k.offset != ^uint64(0):
		return itemKey{k.objectID, k.itemType, k.offset + 1}, true
	case k.itemType < maxType:
		return itemKey{k.objectID, k.itemType + 1, 0}, true
	case k.objectID != ^uint64(0):
		return itemKey{k.objectID + 1, 0, 0}, true
	}
	return k, false
}

// treeItem is one item of a tree. Its data is valid until the next call of next on its
// search.
type treeItem struct {
	itemKey
	data []byte
}

// uint64 reads a little-endian field of the item.
func (i treeItem) uint64(offset int) (uint64, error) {
	if len(i.data) < offset+8 {
		return 0, fmt.Errorf("item (%d %d %d) has %d bytes, wanted %d: %w",
			i.objectID, i.itemType, i.offset, len(i.data), offset+8, unix.EUCLEAN)
	}
	return binary.LittleEndian.Uint64(i.data[offset:]), nil
}

// treeSearch reads a range of a tree in key order, one buffer at a time. It sees the
// running transaction, including changes ahead of it.
type treeSearch struct {
	fd    int
	tree  uint64
	min   itemKey
	max   itemKey
	limit uint32   // of items in one ioctl
	buf   []uint64 // searchArgs and the items after it; of 64 bits for alignment
	rest  []byte   // items that next has not returned yet
	left  uint32
	done  bool
}

// searchTree starts a search of the keys from min to max, both included, with a buffer of
// size bytes for items.
func searchTree(fd int, tree uint64, min, max itemKey, size int) *treeSearch {
	words := (int(unsafe.Sizeof(searchArgs{})) + size + 7) / 8
	return &treeSearch{fd: fd, tree: tree, min: min, max: max, limit: ^uint32(0), buf: make([]uint64, words)}
}

// next returns the next item, or false at the end of the range. Errors: ENOENT when the
// tree does not exist.
func (s *treeSearch) next() (treeItem, bool, error) {
	if s.left == 0 {
		if s.done {
			return treeItem{}, false, nil
		}
		if err := s.fill(); err != nil || s.left == 0 {
			s.done = true
			return treeItem{}, false, err
		}
	}
	return s.take()
}

// fill reads the items from s.min on.
func (s *treeSearch) fill() error {
	args := (*searchArgs)(unsafe.Pointer(&s.buf[0]))
	head := int(unsafe.Sizeof(*args))
	*args = searchArgs{
		key: searchKey{
			treeID:      s.tree,
			minObjectID: s.min.objectID, maxObjectID: s.max.objectID,
			minType: s.min.itemType, maxType: s.max.itemType,
			minOffset: s.min.offset, maxOffset: s.max.offset,
			maxTransID: ^uint64(0),
			nrItems:    s.limit,
		},
		bufSize: uint64(len(s.buf)*8 - head),
	}
	if _, err := ioctl(s.fd, iocTreeSearchV2, unsafe.Pointer(args)); err != nil {
		return err
	}
	s.left = args.key.nrItems
	s.rest = unsafe.Slice((*byte)(unsafe.Pointer(&s.buf[0])), len(s.buf)*8)[head:]
	return nil
}

// take removes one item from the buffer. After the last one it moves s.min behind the item.
func (s *treeSearch) take() (treeItem, bool, error) {
	const head = int(unsafe.Sizeof(searchHeader{}))
	length := int(binary.NativeEndian.Uint32(s.rest[28:]))
	item := treeItem{
		itemKey: itemKey{
			objectID: binary.NativeEndian.Uint64(s.rest[8:]),
			itemType: binary.NativeEndian.Uint32(s.rest[24:]),
			offset:   binary.NativeEndian.Uint64(s.rest[16:]),
		},
		data: s.rest[head : head+length : head+length],
	}
	s.rest = s.rest[head+length:]
	s.left--
	if s.left == 0 {
		var ok bool
		s.min, ok = item.itemKey.next()
		s.done = s.done || !ok || item.itemKey == s.max
	}
	return item, true, nil
}

// findItem returns the item with this key. Errors: ENOENT.
func findItem(fd int, tree uint64, key itemKey) (treeItem, error) {
	item, ok, err := findFirst(fd, tree, key, key)
	if err == nil && !ok {
		err = unix.ENOENT
	}
	return item, err
}

// findFirst returns the first item of a range. It calls one ioctl.
func findFirst(fd int, tree uint64, min, max itemKey) (treeItem, bool, error) {
	s := searchTree(fd, tree, min, max, itemBuffer)
	s.limit = 1
	return s.next()
}

// isNotFound reports whether err means that an item or tree is absent.
func isNotFound(err error) bool { return errors.Is(err, unix.ENOENT) }
