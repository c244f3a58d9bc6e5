package index

import (
	"bytes"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// FuzzRecordInIndex proves that every accepted record can be found in the index and hides
// no other.
func FuzzRecordInIndex(f *testing.F) {
	r := entry(meta.Active, "pvc-1", poolA, meta.Snapshot("snap")).Record
	data, err := r.Encode()
	must(f, err)
	f.Add(data)
	f.Add(bytes.Replace(data, []byte(`"class":"snapshot"`), []byte(`"class":"snapshot\u0000snap"`), 1))
	f.Add(bytes.Replace(data, []byte(`"class":"snapshot",`), nil, 1))
	f.Add(bytes.Replace(data, []byte(`"active"`), []byte(`"view"`), 1))
	f.Add(bytes.Replace(data, []byte(`"id":"snap"`), []byte(`"id":"pvc-1"`), 1))
	x, _ := newIndex(f)
	put(f, x, entry(meta.Active, "neighbour", poolA, meta.Snapshot("snap")))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := meta.DecodeRecord(data)
		if err != nil {
			return
		}
		if c := r.Source.Class; !r.Source.IsZero() && c != meta.Volumes && c != meta.Snapshots {
			t.Errorf("taken with a source of class %q", c)
		}
		e := meta.Entry{Record: r, PoolID: poolB}
		put(t, x, e)
		found := false
		must(t, x.WalkChildren(r.Source, r.Kind.Class(), "", func(have meta.Entry) bool {
			found = found || have.ID == r.ID
			return true
		}))
		if found == r.Source.IsZero() {
			t.Errorf("source %v: among its children: %v", r.Source, found)
		}
		entries, err := x.Lookup(e.Ref())
		if err != nil || len(entries) == 0 || entries[len(entries)-1].ID != r.ID {
			t.Errorf("%s: got %+v, %v", e.Ref(), entries, err)
		}
		_, err = x.SyncPool(poolB, PoolState{}, nil)
		must(t, err)
		must(t, x.Check())
		same(t, walked(t, 9, func(fn func(meta.Entry) bool) error { return x.Walk(meta.Volumes, "", fn) }), []string{"neighbour"})
		same(t, walked(t, 9, func(fn func(meta.Entry) bool) error {
			return x.WalkChildren(meta.Snapshot("snap"), meta.Volumes, "", fn)
		}), []string{"neighbour"})
	})
}

// FuzzDamagedIndex damages a file without changing its seal. Open returns the entries of
// the closed file, or reports that it replaced the file.
func FuzzDamagedIndex(f *testing.F) {
	const entries = 40
	good := closedIndex(f, entries, func(*bolt.Tx) error { return nil })
	f.Add(uint32(0), []byte{}, uint32(0))
	f.Add(uint32(16), []byte{0xff, 0xff}, uint32(0))              // flags of a meta page
	f.Add(uint32(4096+16), []byte("noise"), uint32(0))            // flags of the other meta page
	f.Add(uint32(len(good.data)/2), []byte{1}, uint32(0))         // an entry
	f.Add(uint32(0), []byte{}, uint32(len(good.data)/2))          // cut
	f.Add(uint32(len(good.data)-1), []byte{0, 0, 0}, uint32(0))   // longer
	f.Add(uint32(0), good.data[4096:8192], uint32(0))             // the other meta page
	f.Add(uint32(4096*2), make([]byte, 4096), uint32(0))          // a page of zeros
	f.Add(uint32(4096*3), good.data[4096*4:4096*5], uint32(4096)) // a page at the wrong place
	f.Fuzz(func(t *testing.T, at uint32, noise []byte, cut uint32) {
		data := damaged(good.data, at, noise, cut)
		x, renewed, err := Open(closed{data, good.seal}.write(t))
		must(t, err)
		defer x.Close()
		got := len(walked(t, 2*entries, func(fn func(meta.Entry) bool) error { return x.Walk(meta.Volumes, "", fn) }))
		want := 0
		if bytes.Equal(data, good.data) {
			want = entries
		}
		if got != want || (renewed == "") != (want == entries) {
			t.Errorf("%d entries, wanted %d; renewed because %q", got, want, renewed)
		}
		must(t, x.Check())
	})
}

// damaged writes noise over data and cuts the end off.
func damaged(data []byte, at uint32, noise []byte, cut uint32) []byte {
	from := int(at) % len(data)
	changed := append(bytes.Clone(data[:from]), noise...)
	if len(changed) < len(data) {
		changed = append(changed, data[len(changed):]...)
	}
	return changed[:len(changed)-int(cut)%len(changed)]
}
