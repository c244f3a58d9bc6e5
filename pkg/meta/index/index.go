package index

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

const (
	// indexVersion increases when the schema in doc.go changes. An index of another version
	// is replaced.
	indexVersion = 1
	// historyLimit is the number of removals in the history.
	historyLimit = 10_000
)

var (
	bucketMeta     = []byte("meta")
	bucketEntries  = []byte("entries")
	bucketChildren = []byte("children")
	bucketPools    = []byte("pools")
	bucketRemoved  = []byte("removed")
	keyVersion     = []byte("version")
)

// Index stores the entries of all pools of a node. It is safe for concurrent use.
type Index struct {
	file   *file
	behind *behind
}

// Removed is a removed entry in the history.
type Removed struct {
	meta.Entry
	RemovedAt time.Time `json:"removedAt"`
}

// PoolState is what the index stores about a pool beside its entries.
type PoolState struct {
	Name string `json:"name"`
	// Unlisted contains the volumes and snapshots in the pool that are no entries, because
	// their records cannot be read or they are incomplete.
	Unlisted []meta.Ref `json:"unlisted,omitempty"`
}

// Open opens the index at path. It replaces a file that is missing, damaged, of another
// version, or was in use at a power cut, by an empty one. On a full disk it keeps the index
// in memory. In both cases renewed is the reason, for the log. Open fails when another
// process has locked the file, or when it cannot create one.
func Open(path string) (x *Index, renewed string, err error) {
	f, renewed, err := openFile(path)
	if noRoom(err) {
		renewed = fmt.Sprintf("it is kept in memory until the next start, make room for it: %v", err)
		f, err = openMemory()
	}
	if err != nil {
		return nil, "", fmt.Errorf("open index %s: %w", path, err)
	}
	x = &Index{file: f, behind: newBehind()}
	go x.behind.run(f)
	return x, renewed, nil
}

// initialise creates the buckets. It returns errUntrusted for another version.
func initialise(db *bolt.DB) error {
	return db.Update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketEntries, bucketChildren, bucketPools, bucketRemoved} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		m := tx.Bucket(bucketMeta)
		switch v := m.Get(keyVersion); {
		case v == nil:
			return m.Put(keyVersion, []byte{indexVersion})
		case !bytes.Equal(v, []byte{indexVersion}):
			return fmt.Errorf("%w: version %v, want %d", errUntrusted, v, indexVersion)
		}
		return nil
	})
}

// checkValues returns an error unless every entry can be decoded and has its own key, and
// children match entries.
func checkValues(tx *bolt.Tx) error {
	entries := tx.Bucket(bucketEntries)
	if entries == nil {
		return nil // a file that was never initialised
	}
	children := tx.Bucket(bucketChildren)
	if children == nil {
		return errors.New("bucket children is missing")
	}
	links := 0
	err := entries.ForEach(func(k, v []byte) error {
		e, err := decodeEntry(v)
		if err != nil {
			return fmt.Errorf("entry %q: %w", k, err)
		}
		if !bytes.Equal(k, entryKey(e)) {
			return fmt.Errorf("entry %q stands at %q", entryKey(e), k)
		}
		if e.Source.IsZero() {
			return nil
		}
		links++
		if children.Get(childKey(e)) == nil {
			return fmt.Errorf("entry %q is missing from the children of its source", k)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if n := children.Stats().KeyN; n != links {
		return fmt.Errorf("%d children of %d entries with a source", n, links)
	}
	return nil
}

// Check verifies the structure of the file, all values, and that the buckets match. Its
// cost grows with the number of entries.
func (x *Index) Check() error {
	return x.view(func(tx *bolt.Tx) error {
		var errs []error
		for err := range tx.Check() { // read to the end: the checker cannot be stopped
			errs = append(errs, err)
		}
		if len(errs) > 0 {
			return fmt.Errorf("%d faults, the first: %w", len(errs), errs[0])
		}
		return checkValues(tx)
	})
}

// Close writes pending changes, closes the file and seals it. Nothing may be added after
// Close.
func (x *Index) Close() error {
	err := errors.Join(x.behind.end(x.file), x.file.close())
	if err != nil || x.file.path == "" {
		return err
	}
	return sealClosed(x.file.path)
}

// view writes pending changes and then reads the file.
func (x *Index) view(fn func(*bolt.Tx) error) error {
	if err := x.behind.write(x.file); err != nil {
		return err
	}
	return x.file.view(fn)
}

// Put adds e, or replaces the entry of the same class, ID and pool. It does not wait for
// the file. It returns the error of an earlier Put or Remove, as reads do.
func (x *Index) Put(e meta.Entry) error {
	return x.behind.add(change{e.Ref(), func(tx *bolt.Tx) error { return putEntry(tx, entryKey(e), e) }})
}

// Remove moves the entry of ref in a pool to the history, if it exists. It does not wait,
// and returns errors like Put.
func (x *Index) Remove(ref meta.Ref, poolID string) error {
	now := time.Now().UTC()
	return x.behind.add(change{ref, func(tx *bolt.Tx) error {
		old, err := getEntry(tx, append(refPrefix(ref), poolID...))
		if err != nil || old == nil {
			return err
		}
		if err := deleteEntry(tx, *old); err != nil {
			return err
		}
		return addHistory(tx, Removed{Entry: *old, RemovedAt: now})
	}})
}

// Flush writes all pending changes to the file.
func (x *Index) Flush() error { return x.behind.write(x.file) }

// Pools returns all pools by ID that the index has ever seen, also those that are absent
// now.
func (x *Index) Pools() (map[string]PoolState, error) {
	pools := map[string]PoolState{}
	err := x.file.view(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketPools).ForEach(func(id, v []byte) error {
			var state PoolState
			err := json.Unmarshal(v, &state)
			pools[string(id)] = state
			return err
		})
	})
	return pools, err
}

// Lookup returns the entries of ref, one for each pool that contains it. For absent pools
// the entries are as last seen.
func (x *Index) Lookup(ref meta.Ref) ([]meta.Entry, error) {
	view := x.file.view
	if x.behind.touches(ref) {
		view = x.view
	}
	var found []meta.Entry
	err := view(func(tx *bolt.Tx) error {
		return walkPrefix(tx.Bucket(bucketEntries), refPrefix(ref), nil, func(_, v []byte) error {
			e, err := decodeEntry(v)
			found = append(found, e)
			return err
		})
	})
	return found, err
}

// Walk calls fn for every entry of class with an ID greater than after, ordered by ID,
// until fn returns false. fn must not call the index.
func (x *Index) Walk(class meta.Class, after string, fn func(meta.Entry) bool) error {
	return x.view(func(tx *bolt.Tx) error {
		return walkPrefix(tx.Bucket(bucketEntries), classPrefix(class), afterKey(classPrefix(class), after),
			func(_, v []byte) error {
				e, err := decodeEntry(v)
				if err == nil && !fn(e) {
					return errStop
				}
				return err
			})
	})
}

// WalkChildren is Walk over the volumes or snapshots that were made from source.
func (x *Index) WalkChildren(source meta.Ref, class meta.Class, after string, fn func(meta.Entry) bool) error {
	return x.view(func(tx *bolt.Tx) error {
		prefix := append(refPrefix(source), classPrefix(class)...)
		return walkPrefix(tx.Bucket(bucketChildren), prefix, afterKey(prefix, after), func(k, _ []byte) error {
			e, err := getEntry(tx, k[len(refPrefix(source)):])
			if err == nil && e != nil && !fn(*e) {
				return errStop
			}
			return err
		})
	})
}

// Counts returns the numbers of volumes and snapshots in each pool, by its ID. It decodes no
// entry.
func (x *Index) Counts() (map[string]map[meta.Class]int, error) {
	counts := map[string]map[meta.Class]int{}
	err := x.view(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketEntries).ForEach(func(k, _ []byte) error {
			class, pool := meta.Class(k[:bytes.IndexByte(k, 0)]), string(k[bytes.LastIndexByte(k, 0)+1:])
			if counts[pool] == nil {
				counts[pool] = map[meta.Class]int{}
			}
			counts[pool][class]++
			return nil
		})
	})
	return counts, err
}

// SyncPool makes the entries of one pool equal to want and stores state. It writes only
// differences, and returns their number.
func (x *Index) SyncPool(poolID string, state PoolState, want []meta.Entry) (changed int, err error) {
	if err := x.behind.write(x.file); err != nil {
		return 0, err
	}
	err = x.file.update(func(tx *bolt.Tx) error {
		changed = 0
		missing := make(map[string]meta.Entry, len(want))
		for _, e := range want {
			missing[string(entryKey(e))] = e
		}
		gone, err := diffPool(tx, poolID, missing)
		if err != nil {
			return err
		}
		for _, e := range gone {
			if err := deleteEntry(tx, e); err != nil {
				return err
			}
		}
		for key, e := range missing {
			if err := putEntry(tx, []byte(key), e); err != nil {
				return err
			}
		}
		changed = len(gone) + len(missing)
		return putJSON(tx.Bucket(bucketPools), []byte(poolID), state)
	})
	return changed, err
}

// diffPool removes from missing what the index already contains unchanged. It returns the
// entries of the pool that are not in missing.
func diffPool(tx *bolt.Tx, poolID string, missing map[string]meta.Entry) (gone []meta.Entry, err error) {
	suffix := append([]byte{0}, poolID...)
	err = tx.Bucket(bucketEntries).ForEach(func(k, v []byte) error {
		if !bytes.HasSuffix(k, suffix) {
			return nil
		}
		want, ok := missing[string(k)]
		if !ok {
			e, err := decodeEntry(v)
			gone = append(gone, e)
			return err
		}
		data, err := json.Marshal(want)
		if bytes.Equal(data, v) {
			delete(missing, string(k))
		}
		return err
	})
	return gone, err
}

// History returns the last removals, newest first.
func (x *Index) History() ([]Removed, error) {
	var history []Removed
	err := x.view(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketRemoved).Cursor()
		for k, v := c.Last(); k != nil; k, v = c.Prev() {
			var r Removed
			if err := json.Unmarshal(v, &r); err != nil {
				return err
			}
			history = append(history, r)
		}
		return nil
	})
	return history, err
}

func addHistory(tx *bolt.Tx, r Removed) error {
	b := tx.Bucket(bucketRemoved)
	seq, err := b.NextSequence()
	if err != nil {
		return err
	}
	if seq > historyLimit {
		if err := b.Delete(binary.BigEndian.AppendUint64(nil, seq-historyLimit)); err != nil {
			return err
		}
	}
	return putJSON(b, binary.BigEndian.AppendUint64(nil, seq), r)
}

func putEntry(tx *bolt.Tx, key []byte, e meta.Entry) error {
	old, err := getEntry(tx, key)
	if err != nil {
		return err
	}
	if old != nil && old.Source != e.Source {
		if err := deleteEntry(tx, *old); err != nil {
			return err
		}
	}
	if !e.Source.IsZero() {
		if err := tx.Bucket(bucketChildren).Put(childKey(e), []byte{}); err != nil {
			return err
		}
	}
	return putJSON(tx.Bucket(bucketEntries), key, e)
}

func deleteEntry(tx *bolt.Tx, e meta.Entry) error {
	if !e.Source.IsZero() {
		if err := tx.Bucket(bucketChildren).Delete(childKey(e)); err != nil {
			return err
		}
	}
	return tx.Bucket(bucketEntries).Delete(entryKey(e))
}

func getEntry(tx *bolt.Tx, key []byte) (*meta.Entry, error) {
	v := tx.Bucket(bucketEntries).Get(key)
	if v == nil {
		return nil, nil
	}
	e, err := decodeEntry(v)
	return &e, err
}

func decodeEntry(v []byte) (e meta.Entry, err error) {
	err = json.Unmarshal(v, &e)
	return e, err
}

func putJSON(b *bolt.Bucket, key []byte, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return b.Put(key, data)
}

// errStop ends a walk without an error.
var errStop = errors.New("stop")

// walkPrefix calls fn for the keys with this prefix, starting at seek.
func walkPrefix(b *bolt.Bucket, prefix, seek []byte, fn func(k, v []byte) error) error {
	if seek == nil {
		seek = prefix
	}
	c := b.Cursor()
	for k, v := c.Seek(seek); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
		if err := fn(k, v); err != nil {
			if errors.Is(err, errStop) {
				return nil
			}
			return err
		}
	}
	return nil
}

func classPrefix(c meta.Class) []byte { return append([]byte(c), 0) }
func refPrefix(r meta.Ref) []byte     { return append(append(classPrefix(r.Class), r.ID...), 0) }
func entryKey(e meta.Entry) []byte    { return append(refPrefix(e.Ref()), e.PoolID...) }
func childKey(e meta.Entry) []byte    { return append(refPrefix(e.Source), entryKey(e)...) }

// afterKey returns the first key after all keys of the ID after. Byte 0x00 follows each ID,
// and no ID contains 0x01.
func afterKey(prefix []byte, after string) []byte {
	if after == "" {
		return nil
	}
	return append(append(bytes.Clone(prefix), after...), 1)
}
