package index

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

const (
	poolA = "0b5c1b54-0000-4000-8000-00000000000a"
	poolB = "0b5c1b54-0000-4000-8000-00000000000b"
)

func entry(kind meta.Kind, id, pool string, source meta.Ref) meta.Entry {
	return meta.Entry{
		Record:  meta.Record{ID: id, Name: id, Kind: kind, State: meta.Ready, Size: 1 << 30, Source: source, Created: time.Unix(1, 0).UTC()},
		Lineage: meta.Lineage{SubvolumeID: 300, UUID: "u-" + id}, Pool: "pool", PoolID: pool,
	}
}

// newIndex returns an index. The end of the test checks it.
func newIndex(t testing.TB) (*Index, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "index.db")
	return reopen(t, path), path
}

func reopen(t testing.TB, path string) *Index {
	t.Helper()
	x, _, err := Open(path)
	must(t, err)
	t.Cleanup(func() {
		if x.file.db.Load().String() == `DB<"">` {
			return // closed by the test
		}
		if err := x.Check(); err != nil {
			t.Errorf("at the end: %v", err)
		}
		must(t, x.Close())
	})
	return x
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t testing.TB, x *Index, entries ...meta.Entry) {
	t.Helper()
	for _, e := range entries {
		must(t, x.Put(e))
	}
	must(t, x.Flush())
}

// walked returns the IDs of a walk, at most limit.
func walked(t testing.TB, limit int, walk func(func(meta.Entry) bool) error) []string {
	t.Helper()
	var ids []string
	must(t, walk(func(e meta.Entry) bool { ids = append(ids, e.ID); return len(ids) < limit }))
	return ids
}

func same(t testing.TB, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, wanted %v", got, want)
	}
}

func TestIndexPutLookupRemove(t *testing.T) {
	t.Parallel()
	x, path := newIndex(t)
	a, b := entry(meta.Active, "x", poolA, meta.Ref{}), entry(meta.View, "x", poolB, meta.Snapshot("s"))
	snap := entry(meta.Committed, "x", poolA, meta.Volume("x"))
	longer := entry(meta.Active, "x-longer", poolA, meta.Ref{})
	put(t, x, a, b, snap, longer)
	lookup := func(ref meta.Ref) []meta.Entry {
		found, err := x.Lookup(ref)
		must(t, err)
		return found
	}
	same(t, lookup(meta.Volume("x")), []meta.Entry{a, b})
	same(t, lookup(meta.Snapshot("x")), []meta.Entry{snap})
	a.Size, a.Source = 2<<30, meta.Volume("other") // another source
	put(t, x, a)
	must(t, x.Check())
	must(t, x.Close())
	x = reopen(t, path)
	same(t, lookup(meta.Volume("x")), []meta.Entry{a, b})
	before := time.Now()
	must(t, x.Remove(meta.Volume("x"), poolA))
	must(t, x.Remove(meta.Volume("x"), poolA))
	must(t, x.Remove(meta.Volume("missing"), poolA))
	same(t, lookup(meta.Volume("x")), []meta.Entry{b})
	same(t, lookup(meta.Snapshot("x")), []meta.Entry{snap})
	same(t, lookup(meta.Volume("missing")), []meta.Entry(nil))
	history, err := x.History()
	must(t, err)
	if len(history) != 1 || !reflect.DeepEqual(history[0].Entry, a) || history[0].RemovedAt.Before(before.Truncate(time.Second)) || history[0].RemovedAt.After(time.Now()) {
		t.Errorf("got %+v", history)
	}
}

func TestIndexWalk(t *testing.T) {
	t.Parallel()
	x, _ := newIndex(t)
	for _, id := range []string{"b", "a", "a-", "a.b", "ab", "a_b", "A", "0"} { // ordered: 0 A a a- a.b a_b ab b
		put(t, x, entry(meta.Active, id, poolA, meta.Ref{}), entry(meta.Committed, "snap-"+id, poolA, meta.Volume(id)))
	}
	put(t, x, entry(meta.Active, "a", poolB, meta.Ref{})) // the same ID in two pools
	want := []string{"0", "A", "a", "a", "a-", "a.b", "a_b", "ab", "b"}
	for after := range want {
		rest := want[after+1:]
		if want[after] == "a" {
			rest = want[4:] // both entries of "a" come before
		}
		got := walked(t, 99, func(fn func(meta.Entry) bool) error { return x.Walk(meta.Volumes, want[after], fn) })
		if !slices.Equal(got, rest) {
			t.Errorf("after %q: got %v, wanted %v", want[after], got, rest)
		}
	}
	same(t, walked(t, 99, func(fn func(meta.Entry) bool) error { return x.Walk(meta.Volumes, "", fn) }), want)
	same(t, walked(t, 3, func(fn func(meta.Entry) bool) error { return x.Walk(meta.Volumes, "", fn) }), want[:3])
	same(t, walked(t, 99, func(fn func(meta.Entry) bool) error { return x.Walk(meta.Volumes, "a+", fn) }), want[4:]) // no entry has this ID
	same(t, len(walked(t, 99, func(fn func(meta.Entry) bool) error { return x.Walk(meta.Snapshots, "", fn) })), 8)
	counts, err := x.Counts()
	must(t, err)
	same(t, counts, map[string]map[meta.Class]int{poolA: {meta.Volumes: 8, meta.Snapshots: 8}, poolB: {meta.Volumes: 1}})
}

func TestIndexWalkChildren(t *testing.T) {
	t.Parallel()
	x, _ := newIndex(t)
	put(t, x, entry(meta.Active, "a", poolA, meta.Ref{}))
	for _, source := range []string{"a", "ab", "a-"} {
		for _, n := range []string{"1", "2", "3"} {
			put(t, x, entry(meta.Committed, source+n, poolA, meta.Volume(source)), entry(meta.Active, "clone-"+source+n, poolA, meta.Volume(source)))
		}
	}
	put(t, x, entry(meta.View, "view", poolA, meta.Snapshot("a")))
	children := func(source meta.Ref, class meta.Class, after string, limit int) []string {
		return walked(t, limit, func(fn func(meta.Entry) bool) error { return x.WalkChildren(source, class, after, fn) })
	}
	same(t, children(meta.Volume("a"), meta.Snapshots, "", 9), []string{"a1", "a2", "a3"})
	same(t, children(meta.Volume("a"), meta.Snapshots, "a1", 9), []string{"a2", "a3"})
	same(t, children(meta.Volume("a"), meta.Snapshots, "a1", 1), []string{"a2"})
	same(t, children(meta.Volume("a"), meta.Volumes, "", 9), []string{"clone-a1", "clone-a2", "clone-a3"})
	same(t, children(meta.Snapshot("a"), meta.Volumes, "", 9), []string{"view"})
	same(t, children(meta.Volume("missing"), meta.Volumes, "", 9), []string(nil))
	must(t, x.Remove(meta.Volume("a"), poolA)) // children outlive their source
	must(t, x.Remove(meta.Snapshot("a2"), poolA))
	same(t, children(meta.Volume("a"), meta.Snapshots, "", 9), []string{"a1", "a3"})
}

func TestIndexSyncPool(t *testing.T) {
	t.Parallel()
	x, _ := newIndex(t)
	kept, gone := entry(meta.Active, "kept", poolA, meta.Ref{}), entry(meta.Committed, "gone", poolA, meta.Volume("kept"))
	grown, elsewhere := entry(meta.Active, "grown", poolA, meta.Ref{}), entry(meta.Active, "kept", poolB, meta.Ref{})
	put(t, x, kept, gone, grown, elsewhere)
	sync := func(want int, entries ...meta.Entry) {
		t.Helper()
		changed, err := x.SyncPool(poolA, PoolState{Name: "fast"}, entries)
		must(t, err)
		if changed != want {
			t.Errorf("changed %d, wanted %d", changed, want)
		}
		must(t, x.Check())
	}
	sync(1, kept, gone, grown, entry(meta.View, "view", poolA, meta.Snapshot("gone")))
	grown.Size++
	moved := entry(meta.View, "view", poolA, meta.Snapshot("other"))
	sync(3, kept, grown, moved)
	sync(0, moved, grown, kept)
	found, err := x.Lookup(meta.Volume("kept"))
	must(t, err)
	same(t, found, []meta.Entry{kept, elsewhere})
	same(t, walked(t, 9, func(fn func(meta.Entry) bool) error {
		return x.WalkChildren(meta.Snapshot("gone"), meta.Volumes, "", fn)
	}), []string(nil))
	sync(3)
	found, err = x.Lookup(meta.Volume("kept"))
	must(t, err)
	same(t, found, []meta.Entry{elsewhere})
	history, err := x.History()
	must(t, err)
	same(t, len(history), 0) // a changed disk is no removal
}

func TestIndexHistoryIsBounded(t *testing.T) {
	t.Parallel()
	x, _ := newIndex(t)
	const more = 5
	must(t, x.file.update(func(tx *bolt.Tx) error {
		for i := range historyLimit + more {
			if err := addHistory(tx, Removed{Entry: meta.Entry{Record: meta.Record{ID: fmt.Sprint(i)}}}); err != nil {
				return err
			}
		}
		return nil
	}))
	history, err := x.History()
	must(t, err)
	if len(history) != historyLimit || history[0].ID != fmt.Sprint(historyLimit+more-1) || history[historyLimit-1].ID != fmt.Sprint(more) {
		t.Errorf("%d, from %s to %s", len(history), history[0].ID, history[len(history)-1].ID)
	}
}

// closed is a closed index file and its seal.
type closed struct{ data, seal []byte }

// closedIndex returns an index of n entries after the transaction change.
func closedIndex(t testing.TB, n int, change func(*bolt.Tx) error) closed {
	t.Helper()
	x, path := newIndex(t)
	for i := range n {
		put(t, x, entry(meta.Active, fmt.Sprintf("pvc-%d", i), poolA, meta.Snapshot("s")))
	}
	must(t, x.file.update(change))
	must(t, x.Close())
	return readClosed(t, path)
}

func readClosed(t testing.TB, path string) closed {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	seal, err := os.ReadFile(sealPath(path))
	must(t, err)
	return closed{data, seal}
}

// write writes the files to a new directory. A nil seal writes none.
func (c closed) write(t testing.TB) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "index.db")
	must(t, os.WriteFile(path, c.data, 0o600))
	if c.seal != nil {
		must(t, os.WriteFile(sealPath(path), c.seal, 0o600))
	}
	return path
}

func TestOpenReplaces(t *testing.T) {
	t.Parallel()
	nothing := func(*bolt.Tx) error { return nil }
	whole := closedIndex(t, 500, nothing)
	noise := bytes.Repeat([]byte("noise "), 50_000)
	with := func(data []byte) closed { return closed{data, whole.seal} }
	sealed := func(seal string) closed { return closed{whole.data, []byte(seal)} }
	spoiled := func(from, to int) closed {
		data := bytes.Clone(whole.data)
		copy(data[from:to], noise)
		return with(data)
	}
	half := len(whole.data) / 2
	for name, file := range map[string]closed{
		"empty":                    with(nil),
		"a byte":                   with([]byte{0}),
		"cut to a page":            with(whole.data[:4096]),
		"cut in half":              with(whole.data[:half]),
		"longer":                   with(append(bytes.Clone(whole.data), 0)),
		"zeros":                    with(make([]byte, len(whole.data))),
		"noise":                    with(noise),
		"noise in the metas":       spoiled(0, 8192),
		"noise in the middle":      spoiled(half/2, half),
		"a byte of noise":          spoiled(half, half+1),
		"older":                    {closedIndex(t, 7, nothing).data, whole.seal},
		"no seal":                  {whole.data, nil},
		"empty seal":               sealed(""),
		"empty object":             sealed("{}"),
		"noise as seal":            sealed("noise"),
		"open at a boot long gone": sealed(`{"boot":"00000000-0000-0000-0000-000000000000"}`),
		"other version": closedIndex(t, 1, func(tx *bolt.Tx) error {
			return tx.Bucket(bucketMeta).Put(keyVersion, []byte{indexVersion + 1})
		}),
		"a bucket is missing": closedIndex(t, 1, func(tx *bolt.Tx) error { return tx.DeleteBucket(bucketChildren) }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := file.write(t)
			x, renewed, err := Open(path)
			must(t, err)
			must(t, x.Check())
			got := walked(t, 999, func(fn func(meta.Entry) bool) error { return x.Walk(meta.Volumes, "", fn) })
			if len(got) != 0 || renewed == "" {
				t.Errorf("%d entries, renewed because %q", len(got), renewed)
			}
			put(t, x, entry(meta.Active, "new", poolA, meta.Ref{}))
			must(t, x.Close())
			x, renewed, err = Open(path) // the file is valid now
			must(t, err)
			same(t, renewed, "")
			must(t, x.Close())
		})
	}
}

// TestOpenAfterKill: the file and the seal of a killed process are valid until the next
// boot.
func TestOpenAfterKill(t *testing.T) {
	t.Parallel()
	x, path := newIndex(t)
	put(t, x, entry(meta.Active, "pvc", poolA, meta.Ref{}))
	left := readClosed(t, path) // copied while open
	again, renewed, err := Open(left.write(t))
	must(t, err)
	found, err := again.Lookup(meta.Volume("pvc"))
	must(t, err)
	if len(found) != 1 || renewed != "" {
		t.Errorf("got %v, renewed because %q", found, renewed)
	}
	must(t, again.Close())
}

// TestIndexDamagedInUse overwrites the file of an open index. Operations that find the
// damage fail. Then the index is empty and works again.
func TestIndexDamagedInUse(t *testing.T) {
	t.Parallel()
	for name, use := range map[string]func(*Index) error{
		"write": func(x *Index) error {
			must(t, x.Put(entry(meta.Active, "next", poolA, meta.Ref{})))
			return x.Flush()
		},
		"read": func(x *Index) error { _, err := x.Lookup(meta.Volume("pvc-1")); return err },
		"sync": func(x *Index) error { _, err := x.SyncPool(poolA, PoolState{}, nil); return err },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x, path := newIndex(t)
			var want []meta.Entry
			for i := range 500 {
				want = append(want, entry(meta.Active, fmt.Sprint("pvc-", i), poolA, meta.Ref{}))
			}
			_, err := x.SyncPool(poolA, PoolState{}, want)
			must(t, err)
			damage(t, path)

			if err := use(x); !errors.Is(err, errUntrusted) {
				t.Errorf("got %v", err)
			}
			_, err = x.SyncPool(poolA, PoolState{}, want)
			must(t, err)
			must(t, x.Check())
			must(t, x.Close())
			again, renewed, err := Open(path)
			must(t, err)
			defer again.Close()
			found, err := again.Lookup(meta.Volume("pvc-1"))
			must(t, err)
			if len(found) != 1 || renewed != "" {
				t.Errorf("got %v, renewed because %q", found, renewed)
			}
		})
	}
}

// damage overwrites an index file except the two meta pages of bbolt.
func damage(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	defer f.Close()
	st, err := f.Stat()
	must(t, err)
	begin := 2 * os.Getpagesize()
	_, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, int(st.Size())-begin), int64(begin))
	must(t, err)
}

func TestOpenKeeps(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "index.db")
	x, renewed, err := Open(path)
	must(t, err)
	if renewed == "" {
		t.Error("a new one was not called so")
	}
	put(t, x, entry(meta.Active, "pvc", poolA, meta.Ref{}))
	must(t, x.Close())
	x, renewed, err = Open(path)
	must(t, err)
	defer x.Close()
	found, err := x.Lookup(meta.Volume("pvc"))
	must(t, err)
	if len(found) != 1 || renewed != "" {
		t.Errorf("got %v, renewed because %q", found, renewed)
	}
}

func TestOpenFails(t *testing.T) {
	t.Parallel()
	if _, _, err := Open(filepath.Join(t.TempDir(), "missing", "index.db")); err == nil {
		t.Error("made in a directory that is missing")
	}
	if _, _, err := Open(t.TempDir()); err == nil {
		t.Error("made in the place of a directory")
	}
}

// TestCheck introduces one fault at a time.
func TestCheck(t *testing.T) {
	t.Parallel()
	e := entry(meta.Committed, "snap", poolA, meta.Volume("pvc"))
	for name, c := range map[string]struct {
		plant func(*bolt.Tx) error
		wants string
	}{
		"entry is noise": {func(tx *bolt.Tx) error { return tx.Bucket(bucketEntries).Put(entryKey(e), []byte("x")) }, "snap"},
		"entry at another key": {func(tx *bolt.Tx) error {
			moved := e
			moved.ID = "other"
			return putJSON(tx.Bucket(bucketEntries), entryKey(e), moved)
		}, "stands at"},
		"child without entry": {func(tx *bolt.Tx) error {
			return tx.Bucket(bucketChildren).Put(childKey(entry(meta.Active, "x", poolA, meta.Volume("y"))), []byte{})
		}, "children"},
		"entry without child":    {func(tx *bolt.Tx) error { return tx.Bucket(bucketChildren).Delete(childKey(e)) }, "missing"},
		"no bucket for children": {func(tx *bolt.Tx) error { return tx.DeleteBucket(bucketChildren) }, "children"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x, path := newIndex(t)
			put(t, x, e, entry(meta.Active, "pvc", poolA, meta.Ref{}))
			must(t, x.Check())
			must(t, x.file.update(c.plant))
			if err := x.Check(); err == nil || !strings.Contains(err.Error(), c.wants) {
				t.Errorf("got %v, wanted %q in it", err, c.wants)
			}
			must(t, x.Close())
			x, renewed, err := Open(path)
			must(t, err)
			if renewed == "" {
				t.Error("taken as it is")
			}
			must(t, x.Close())
		})
	}
}

const holdVariable = "META_TEST_HOLD_INDEX"

// TestOpenInUse opens a file that another process, a copy of this test, has locked.
func TestOpenInUse(t *testing.T) {
	if path := os.Getenv(holdVariable); path != "" {
		x, _, err := Open(path)
		must(t, err)
		fmt.Println("held")
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		must(t, x.Close())
		return
	}
	t.Parallel()
	path := filepath.Join(t.TempDir(), "index.db")
	cmd := exec.Command(os.Args[0], "-test.run=^TestOpenInUse$")
	cmd.Env = append(os.Environ(), holdVariable+"="+path)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	same(t, line, "held\n")
	if x, _, err := Open(path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("got %v, %v", x, err)
	}
	must(t, in.Close())
	_ = cmd.Wait()
	x, renewed, err := Open(path)
	must(t, err)
	same(t, renewed, "")
	must(t, x.Close())
}

// FuzzOpen proves that no file and no seal can make Open panic, and that every opened index
// works.
func FuzzOpen(f *testing.F) {
	good := closedIndex(f, 3, func(*bolt.Tx) error { return nil })
	f.Add(good.data, good.seal)
	f.Add([]byte{}, []byte{})
	f.Add(good.data[:len(good.data)/2], good.seal)
	f.Add(good.data, good.seal[:len(good.seal)/2])
	f.Add(good.data, []byte(`{"boot":"x","sha256":"y"}`))
	f.Fuzz(func(t *testing.T, data, seal []byte) {
		x, _, err := Open(closed{data, seal}.write(t))
		must(t, err)
		put(t, x, entry(meta.Active, "new", poolB, meta.Ref{}))
		must(t, x.Check())
		must(t, x.Close())
	})
}
