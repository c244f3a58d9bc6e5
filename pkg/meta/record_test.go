package meta

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func full() Record {
	return Record{
		ID: "pvc-1", Name: "pvc-1", Kind: Active, State: Ready, Size: 1<<63 - 1,
		Created: time.Date(2026, 2, 3, 4, 5, 6, 789, time.UTC), Source: Snapshot("snap"),
		Parameters: Parameters{Compression: "zstd:3", NoDataCow: true, SkipNested: true},
		Labels:     map[string]string{"namespace": "default", "name": "数据"},
	}
}

func TestRecordRoundTrip(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]Record{
		"full":     full(),
		"least":    {ID: "x", Name: "x", Kind: Committed, State: Creating},
		"disk":     {ID: "x", Name: "x", Kind: Active, Content: XFS, State: Ready},
		"hashed":   {ID: ID("a/b"), Name: "a/b", Kind: View, State: Ready, Source: Volume("x")},
		"escaping": {ID: "x", Name: "<&>\"\\\x00\u2028", Kind: Active, State: Ready},
	} {
		data, err := want.Encode()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := DecodeRecord(data)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v; wanted %+v", name, got, err, want)
		}
	}
}

// TestRecordFormat fails when the encoding changes: existing disks keep the old one.
func TestRecordFormat(t *testing.T) {
	t.Parallel()
	const onDisk = `{"version":1,"record":{"id":"pvc-1","name":"pvc-1","kind":"active","state":"ready","size":9223372036854775807,` +
		`"created":"2026-02-03T04:05:06.000000789Z","source":{"class":"snapshot","id":"snap"},` +
		`"parameters":{"compression":"zstd:3","nodatacow":true,"skipNested":true},"labels":{"name":"数据","namespace":"default"}}}`
	data, err := full().Encode()
	if err != nil || string(data) != onDisk {
		t.Errorf("got  %s, %v\nwant %s", data, err, onDisk)
	}
	if got, err := DecodeRecord([]byte(onDisk)); err != nil || !reflect.DeepEqual(got, full()) {
		t.Errorf("got %+v, %v", got, err)
	}
	later := strings.Replace(onDisk, `"id":"pvc-1"`, `"id":"pvc-1","later":{"a":1}`, 1)
	if got, err := DecodeRecord([]byte(later)); err != nil || !reflect.DeepEqual(got, full()) {
		t.Errorf("with a field of a later release: got %+v, %v", got, err)
	}
}

// A record of a disk file has a version that older readers refuse, since they would mount the
// subvolume.
func TestRecordOfDisk(t *testing.T) {
	t.Parallel()
	const onDisk = `{"version":2,"record":{"id":"x","name":"x","kind":"active","content":"ext4","state":"ready","size":1,` +
		`"created":"0001-01-01T00:00:00Z"}}`
	want := Record{ID: "x", Name: "x", Kind: Active, Content: Ext4, State: Ready, Size: 1}
	data, err := want.Encode()
	if err != nil || string(data) != onDisk {
		t.Errorf("got  %s, %v\nwant %s", data, err, onDisk)
	}
	if got, err := DecodeRecord([]byte(onDisk)); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := DecodeRecord([]byte(strings.Replace(onDisk, "ext4", "ext3", 1))); !errors.Is(err, ErrDamaged) {
		t.Errorf("unknown content: got %v, want %v", err, ErrDamaged)
	}
}

func TestDecodeRecordRefuses(t *testing.T) {
	t.Parallel()
	good, err := full().Encode()
	if err != nil {
		t.Fatal(err)
	}
	change := func(old, new string) string {
		changed := strings.Replace(string(good), old, new, 1)
		if changed == string(good) {
			t.Fatalf("no %q in %s", old, good)
		}
		return changed
	}
	for name, c := range map[string]struct {
		data string
		want error
	}{
		"empty":            {"", ErrDamaged},
		"noise":            {"\x00\xff\x17", ErrDamaged},
		"null":             {"null", ErrDamaged},
		"other JSON":       {`{"a":1}`, ErrDamaged},
		"no record":        {`{"version":1}`, ErrDamaged},
		"null record":      {`{"version":1,"record":null}`, ErrDamaged},
		"more behind":      {string(good) + "x", ErrDamaged},
		"version 0":        {change(`"version":1`, `"version":0`), ErrDamaged},
		"negative version": {change(`"version":1`, `"version":-1`), ErrDamaged},
		"version 3":        {change(`"version":1`, `"version":3`), ErrNewer},
		"newer, other":     {`{"version":7,"record":"opaque"}`, ErrNewer},
		"no ID":            {change(`"id":"pvc-1"`, `"id":""`), ErrDamaged},
		"path as ID":       {change(`"id":"pvc-1"`, `"id":"../x"`), ErrDamaged},
		"no name":          {change(`"name":"pvc-1"`, `"name":""`), ErrDamaged},
		"unknown kind":     {change(`"active"`, `"removing"`), ErrDamaged},
		"unknown state":    {change(`"ready"`, `"done"`), ErrDamaged},
		"negative size":    {change(`9223372036854775807`, `-1`), ErrDamaged},
		"size overflow":    {change(`9223372036854775807`, `9223372036854775808`), ErrDamaged},
		"path as source":   {change(`"id":"snap"`, `"id":"a/b"`), ErrDamaged},
	} {
		if _, err := DecodeRecord([]byte(c.data)); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, wanted %v", name, err, c.want)
		}
	}
	for n := range good {
		if _, err := DecodeRecord(good[:n]); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut at %d: got %v", n, err)
		}
	}
}

func TestRecordTooLarge(t *testing.T) {
	t.Parallel()
	r := full()
	r.Labels = map[string]string{"x": ""}
	data, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	r.Labels["x"] = strings.Repeat("x", MaxRecordSize-len(data))
	if data, err := r.Encode(); err != nil || len(data) != MaxRecordSize {
		t.Errorf("got %d bytes, %v", len(data), err)
	}
	r.Labels["x"] += "x"
	if _, err := r.Encode(); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
}

func TestID(t *testing.T) {
	t.Parallel()
	hash := func(name string) string {
		sum := sha256.Sum256([]byte(name))
		return "sha256-" + hex.EncodeToString(sum[:])
	}
	for _, safe := range []string{"pvc-1", "a", "A.b_c-d", "0", strings.Repeat("x", 128), "sha256", "sha-256-x"} {
		if got := ID(safe); got != safe {
			t.Errorf("%q: got %q", safe, got)
		}
	}
	for _, name := range []string{
		"", ".", "..", ".a", "-a", "_a", "a/b", "a b", "a\n", "\na", "a\x00", "ä", "卷", "🐧", strings.Repeat("x", 129), "\xff",
		"sha256-", hash("a/b"), hash(hash("a/b")),
	} {
		got := ID(name)
		if got != hash(name) || !ValidID(got) {
			t.Errorf("%q: got %q", name, got)
		}
		if ValidID(name) && !strings.HasPrefix(name, hashPrefix) {
			t.Errorf("%q is valid", name)
		}
	}
}

func TestKinds(t *testing.T) {
	t.Parallel()
	for _, kind := range []Kind{Active, Committed, View} {
		found := false
		for _, k := range kind.Class().Kinds() {
			found = found || k == kind
		}
		if !found || kind.ReadOnly() != (kind != Active) {
			t.Errorf("%s: class %s, read-only %v", kind, kind.Class(), kind.ReadOnly())
		}
	}
	if got := Volume("x").String(); got != `volume "x"` {
		t.Error(got)
	}
}

// FuzzDecodeRecord proves that no record can make its reader panic, and that an accepted
// record keeps its meaning when it is written again.
func FuzzDecodeRecord(f *testing.F) {
	good, err := full().Encode()
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{string(good), "", "{}", "null", `{"version":2}`, `{"version":1,"record":{"id":"x"}}`, string(good[:40])} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := DecodeRecord(data)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
				t.Errorf("error without a meaning: %v", err)
			}
			return
		}
		if !ValidID(r.ID) || strings.ContainsAny(r.ID, "/\x00") {
			t.Errorf("ID %q", r.ID)
		}
		again, err := r.Encode()
		if errors.Is(err, ErrTooLarge) {
			return
		}
		if err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
		same, err := DecodeRecord(again)
		a, _ := json.Marshal(r)
		b, _ := json.Marshal(same)
		if err != nil || string(a) != string(b) {
			t.Errorf("got %s, %v; wanted %s", b, err, a)
		}
	})
}
