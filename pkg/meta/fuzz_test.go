package meta

import (
	"bytes"
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	bolt "go.etcd.io/bbolt"
)

// FuzzID proves that any text becomes one safe directory name, and two texts two.
func FuzzID(f *testing.F) {
	for _, seed := range [][2]string{
		{"pvc-1", "pvc-1"}, {"pvc-1", "PVC-1"}, {"", "."}, {"..", "../x"}, {"a/b", ID("a/b")}, {"a\x00", "a"},
		{strings.Repeat("x", 128), strings.Repeat("x", 129)}, {"\xff", "\ufffd"}, {hashPrefix, hashPrefix + "x"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, one, other string) {
		id := ID(one)
		if id != ID(strings.Clone(one)) {
			t.Errorf("%q has two IDs", one)
		}
		if !ValidID(id) || !filepath.IsLocal(id) || filepath.Base(id) != id || len(id) > 128 || id[0] == '-' || id[0] == '.' {
			t.Errorf("%q: %q is no safe name", one, id)
		}
		if (id == ID(other)) != (one == other) {
			t.Errorf("%q has the ID %q, %q has %q", one, id, other, ID(other))
		}
		if ValidID(one) && strings.ContainsFunc(one, func(r rune) bool { return r <= ' ' || r == '/' || r > '~' }) {
			t.Errorf("%q is called valid", one)
		}
	})
}

// FuzzRecordRoundTrip proves that what fits is read as it was written.
func FuzzRecordRoundTrip(f *testing.F) {
	f.Add("pvc-1", uint8(0), int64(1<<30), int64(0), "", "zstd:3", "pvc/name", "data")
	f.Add("<&>\u2028\x00", uint8(0xff), int64(0), int64(-1), "snap", "", "", "")
	f.Add(strings.Repeat("\x01", 128), uint8(1), int64(1<<63-1), int64(1<<40), "a/b", "none", strings.Repeat("\x02", 500), "x")
	f.Fuzz(func(t *testing.T, name string, bits uint8, size, created int64, source, compression, label, value string) {
		for _, text := range []string{name, compression, label, value} {
			if !utf8.ValidString(text) {
				t.Skip("gRPC refuses it, and so does the engine")
			}
		}
		want := Record{
			ID: ID(name), Name: name, Kind: []Kind{Active, Committed, View}[bits%3], State: []State{Creating, Ready}[bits>>2&1],
			Size: size, Created: time.Unix(0, created).UTC(),
			Parameters: Parameters{Compression: compression, NoDataCow: bits&8 != 0, SkipNested: bits&16 != 0},
			Labels:     map[string]string{label: value},
		}
		if source != "" {
			want.Source = Ref{[]Class{Volumes, Snapshots}[bits>>5&1], ID(source)}
		}
		data, err := want.Encode()
		if errors.Is(err, ErrTooLarge) {
			return
		}
		must(t, err)
		got, err := DecodeRecord(data)
		if name == "" || size < 0 {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("name %q, size %d: got %v", name, size, err)
			}
			return
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v\nwant %+v", got, err, want)
		}
	})
}

// FuzzRecordInIndex proves that whatever record is taken from a ledger can be found
// in the index, and hides nothing else there.
func FuzzRecordInIndex(f *testing.F) {
	r := full()
	data, err := r.Encode()
	must(f, err)
	f.Add(data)
	f.Add(bytes.Replace(data, []byte(`"class":"snapshot"`), []byte(`"class":"snapshot\u0000snap"`), 1))
	f.Add(bytes.Replace(data, []byte(`"class":"snapshot",`), nil, 1))
	f.Add(bytes.Replace(data, []byte(`"active"`), []byte(`"view"`), 1))
	f.Add(bytes.Replace(data, []byte(`"id":"snap"`), []byte(`"id":"pvc-1"`), 1))
	x, _ := newIndex(f)
	put(f, x, entry(Active, "neighbour", poolA, Snapshot("snap")))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := DecodeRecord(data)
		if err != nil {
			return
		}
		if c := r.Source.Class; !r.Source.IsZero() && c != Volumes && c != Snapshots {
			t.Errorf("taken with a source of class %q", c)
		}
		e := Entry{Record: r, PoolID: poolB}
		put(t, x, e)
		found := false
		must(t, x.WalkChildren(r.Source, r.Kind.Class(), "", func(have Entry) bool {
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
		same(t, walked(t, 9, func(fn func(Entry) bool) error { return x.Walk(Volumes, "", fn) }), []string{"neighbour"})
		same(t, walked(t, 9, func(fn func(Entry) bool) error { return x.WalkChildren(Snapshot("snap"), Volumes, "", fn) }), []string{"neighbour"})
	})
}

// FuzzDamagedIndex damages a good file behind the back of its seal: what is opened
// has the entries it was closed with, or says that it has been made anew.
func FuzzDamagedIndex(f *testing.F) {
	const entries = 40
	good := closedIndex(f, entries, func(*bolt.Tx) error { return nil })
	f.Add(uint32(0), []byte{}, uint32(0))
	f.Add(uint32(16), []byte{0xff, 0xff}, uint32(0))              // flags of a meta page
	f.Add(uint32(4096+16), []byte("noise"), uint32(0))            // and of the other
	f.Add(uint32(len(good.data)/2), []byte{1}, uint32(0))         // an entry
	f.Add(uint32(0), []byte{}, uint32(len(good.data)/2))          // cut
	f.Add(uint32(len(good.data)-1), []byte{0, 0, 0}, uint32(0))   // longer
	f.Add(uint32(0), good.data[4096:8192], uint32(0))             // the other meta page
	f.Add(uint32(4096*2), make([]byte, 4096), uint32(0))          // a page of zeros
	f.Add(uint32(4096*3), good.data[4096*4:4096*5], uint32(4096)) // a page at the wrong place
	f.Fuzz(func(t *testing.T, at uint32, noise []byte, cut uint32) {
		data := damaged(good.data, at, noise, cut)
		x, renewed, err := OpenIndex(closed{data, good.seal}.write(t))
		must(t, err)
		defer x.Close()
		got := len(walked(t, 2*entries, func(fn func(Entry) bool) error { return x.Walk(Volumes, "", fn) }))
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
