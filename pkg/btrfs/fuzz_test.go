package btrfs

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FuzzTreeItems proves that items of any content, as in a damaged tree or of a later
// kernel, are split as they were joined, and are decoded or refused. It assumes that the
// kernel returns correct lengths.
func FuzzTreeItems(f *testing.F) {
	whole := bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7, 8}, 5)
	f.Add(whole, whole, uint8(40))
	f.Add(whole[:8], []byte{}, uint8(1))
	f.Add(append([]byte{qgroupLimitMaxRfer, 0, 0, 0, 0, 0, 0, 0}, whole...), whole[:7], uint8(12))
	f.Fuzz(func(t *testing.T, one, other []byte, length uint8) {
		joined := append(bytes.Clone(one), other...)
		var items []treeItem
		for rest := joined; len(rest) > 0; {
			n := min(int(length), len(rest))
			items = append(items, treeItem{itemKey{uint64(n), uint32(length), uint64(len(items))}, rest[:n]})
			rest = rest[max(n, 1):]
		}
		n := 0
		for have := range splitItems(joinItems(items), uint32(len(items))) {
			if want := items[n]; have.itemKey != want.itemKey || !bytes.Equal(have.data, want.data) {
				t.Fatalf("got %v, wanted %v", have, want)
			}
			decodes(t, have)
			n++
		}
		if n != len(items) {
			t.Errorf("%d items, wanted %d", n, len(items))
		}
	})
}

// joinItems returns items as the kernel does.
func joinItems(items []treeItem) (buf []byte) {
	for _, item := range items {
		head := make([]byte, unsafe.Sizeof(searchHeader{}))
		binary.NativeEndian.PutUint64(head[8:], item.objectID)
		binary.NativeEndian.PutUint64(head[16:], item.offset)
		binary.NativeEndian.PutUint32(head[24:], item.itemType)
		binary.NativeEndian.PutUint32(head[28:], uint32(len(item.data)))
		buf = append(append(buf, head...), item.data...)
	}
	return buf
}

// decodes checks that a decoder never reads beyond the end of an item.
func decodes(t *testing.T, item treeItem) {
	t.Helper()
	group, err := decodeQgroup(item)
	if short := len(item.data) < 40; short != errors.Is(err, unix.EUCLEAN) || !short && err != nil {
		t.Errorf("qgroup of %d bytes: %v", len(item.data), err)
	}
	if err == nil && (uint64(group.ID) != item.offset || group.Referenced != binary.LittleEndian.Uint64(item.data[8:])) {
		t.Errorf("qgroup of %v: got %+v", item, group)
	}
	limit := Qgroup{MaxReferenced: NoLimit}
	err = limit.decodeLimit(item)
	if short := len(item.data) < 40; short != errors.Is(err, unix.EUCLEAN) || !short && err != nil {
		t.Errorf("limit of %d bytes: %v", len(item.data), err)
	}
	if err != nil {
		return
	}
	limited, marked := item.data[0]&qgroupLimitMaxRfer != 0, item.data[0]&qgroupLimitRsvExcl != 0
	if !limited && limit.MaxReferenced != NoLimit || !marked && limit.Mark != 0 {
		t.Errorf("limit %+v where there is none", limit)
	}
}

// FuzzItemKeys proves that a search continues after the last item, and that a qgroup's ID
// contains level and number.
func FuzzItemKeys(f *testing.F) {
	f.Add(uint64(0), uint32(0), uint64(0))
	f.Add(uint64(1), uint32(255), ^uint64(0))
	f.Add(^uint64(0), uint32(255), ^uint64(0))
	f.Fuzz(func(t *testing.T, objectID uint64, itemType uint32, offset uint64) {
		key := itemKey{objectID, itemType & 0xff, offset}
		next, ok := key.next()
		if !ok {
			if key != (itemKey{^uint64(0), 255, ^uint64(0)}) {
				t.Errorf("nothing behind %v", key)
			}
			return
		}
		if order(next, key) <= 0 {
			t.Errorf("%v comes before %v", next, key)
		}
		id := QgroupID(offset)
		if NewQgroupID(id.Level(), id.Subvolume()) != id {
			t.Errorf("%s is not %d", id, offset)
		}
	})
}

func order(a, b itemKey) int {
	return cmp.Or(cmp.Compare(a.objectID, b.objectID), cmp.Compare(a.itemType, b.itemType), cmp.Compare(a.offset, b.offset))
}
