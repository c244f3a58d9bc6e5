package meta

import (
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// FuzzID proves that any text becomes a safe directory name, and different texts different
// names.
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

// FuzzRecordRoundTrip proves that a record is read as it was written, if it fits.
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
		if err != nil {
			t.Fatal(err)
		}
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
