package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
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

// treeItem is one item of a tree.
type treeItem struct {
	itemKey
	data []byte
}

// uint64 reads a little-endian field of the item.
func (i treeItem) uint64(offset int) (uint64, error) {
	if len(i.data) < offset+8 {
		return 0, i.tooShort(offset + 8)
	}
	return binary.LittleEndian.Uint64(i.data[offset:]), nil
}

// tooShort returns EUCLEAN for an item that should have this size in bytes.
func (i treeItem) tooShort(size int) error {
	return fmt.Errorf("item (%d %d %d) has %d bytes, wanted %d: %w", i.objectID, i.itemType, i.offset, len(i.data), size, unix.EUCLEAN)
}

// searchTree returns the items with keys from min to max, both included, in key order. It reads
// size bytes of items at a time, and sees the running transaction, including changes ahead of it.
// The data of an item is valid until the next one. An error is the last result: ENOENT when the
// tree does not exist.
func searchTree(fd int, tree uint64, min, max itemKey, size int) iter.Seq2[treeItem, error] {
	return func(yield func(treeItem, error) bool) {
		buf := make([]uint64, (int(unsafe.Sizeof(searchArgs{}))+size+7)/8)
		for more := true; more; {
			data, n, err := readItems(fd, tree, min, max, buf)
			if err != nil {
				yield(treeItem{}, err)
			}
			if err != nil || n == 0 {
				return
			}
			var last itemKey
			for item := range splitItems(data, n) {
				if last = item.itemKey; !yield(item, nil) {
					return
				}
			}
			min, more = last.next()
			more = more && last != max
		}
	}
}

// readItems reads as many of the items from min to max as fit into buf, which has 64 bits for
// alignment, and returns their number.
func readItems(fd int, tree uint64, min, max itemKey, buf []uint64) (data []byte, n uint32, err error) {
	args := (*searchArgs)(unsafe.Pointer(&buf[0]))
	head := int(unsafe.Sizeof(*args))
	*args = searchArgs{
		key: searchKey{
			treeID:      tree,
			minObjectID: min.objectID, maxObjectID: max.objectID,
			minType: min.itemType, maxType: max.itemType,
			minOffset: min.offset, maxOffset: max.offset,
			maxTransID: ^uint64(0),
			nrItems:    ^uint32(0),
		},
		bufSize: uint64(len(buf)*8 - head),
	}
	_, err = ioctl(fd, iocTreeSearchV2, unsafe.Pointer(args))
	return unsafe.Slice((*byte)(unsafe.Pointer(&buf[0])), len(buf)*8)[head:], args.key.nrItems, err
}

// splitItems returns the n items in the result of an ioctl.
func splitItems(data []byte, n uint32) iter.Seq[treeItem] {
	const head = int(unsafe.Sizeof(searchHeader{}))
	return func(yield func(treeItem) bool) {
		for range n {
			end := head + int(binary.NativeEndian.Uint32(data[28:]))
			item := treeItem{
				itemKey: itemKey{
					objectID: binary.NativeEndian.Uint64(data[8:]),
					itemType: binary.NativeEndian.Uint32(data[24:]),
					offset:   binary.NativeEndian.Uint64(data[16:]),
				},
				data: data[head:end:end],
			}
			if !yield(item) {
				return
			}
			data = data[end:]
		}
	}
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
func findFirst(fd int, tree uint64, first, last itemKey) (item treeItem, found bool, err error) {
	buf := make([]uint64, (int(unsafe.Sizeof(searchArgs{}))+itemBuffer+7)/8)
	data, n, err := readItems(fd, tree, first, last, buf)
	if err != nil {
		return item, false, err
	}
	for is := range splitItems(data, min(n, 1)) {
		item, found = is, true
	}
	return item, found, nil
}

// isNotFound reports whether err means that an item or tree is absent.
func isNotFound(err error) bool { return errors.Is(err, unix.ENOENT) }
