package snapshotter

import (
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	bolt "go.etcd.io/bbolt"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// revisions stores the labels that Update has set, and the times. They are not in the engine's records,
// because a record has the request that created the subvolume and does not change.
//
//	revisions
//	└── <key>    JSON revision
//
// open reads the file, and only update writes it, durably. Operations that change no labels do not touch
// it. The row of a removed snapshot is deleted with the next update. Until then its UUID distinguishes it
// from a new snapshot with the same key.
type revisions struct {
	db *bolt.DB

	writing sync.Mutex // one update at a time; taken before mu

	mu    sync.RWMutex // protects what follows; never held across I/O
	byKey map[string]revision
	stale map[string]bool // keys of rows to delete
}

type revision struct {
	UUID    string            `json:"uuid"` // UUID of the subvolume
	Labels  map[string]string `json:"labels,omitempty"`
	Updated time.Time         `json:"updated"`
}

var revisionsBucket = []byte("revisions")

// openTimeout limits the wait for another process that has the file open.
const openTimeout = 5 * time.Second

func openRevisions(path string) (*revisions, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: openTimeout})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	r := &revisions{db: db, byKey: map[string]revision{}, stale: map[string]bool{}}
	if err := db.View(r.read); err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return r, nil
}

func (r *revisions) read(tx *bolt.Tx) error {
	bucket := tx.Bucket(revisionsBucket)
	if bucket == nil {
		return nil
	}
	return bucket.ForEach(func(key, value []byte) error {
		var rev revision
		if err := json.Unmarshal(value, &rev); err != nil {
			return fmt.Errorf("labels of %q: %w", key, err)
		}
		r.byKey[string(key)] = rev
		return nil
	})
}

// retain drops the rows that live does not confirm.
func (r *revisions) retain(live func(key, uuid string) bool) {
	r.mu.RLock()
	known := maps.Clone(r.byKey)
	r.mu.RUnlock()
	for key, rev := range known {
		if !live(key, rev.UUID) {
			r.forget(key)
		}
	}
}

// forget drops the row of a removed key.
func (r *revisions) forget(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.byKey[key]; ok {
		delete(r.byKey, key)
		r.stale[key] = true
	}
}

// apply applies the updates of an entry to its info.
func (r *revisions) apply(info snapshots.Info, entry meta.Entry) snapshots.Info {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if rev, ok := r.byKey[info.Name]; ok && rev.UUID == entry.UUID {
		info.Labels, info.Updated = maps.Clone(rev.Labels), rev.Updated
	}
	return info
}

// update applies change to the info of an entry, stores the result durably, and returns it. info is
// without earlier updates.
func (r *revisions) update(info snapshots.Info, entry meta.Entry, change func(*snapshots.Info) error) (snapshots.Info, error) {
	r.writing.Lock()
	defer r.writing.Unlock()
	info = r.apply(info, entry)
	if err := change(&info); err != nil {
		return snapshots.Info{}, err
	}
	info.Updated = time.Now().UTC()
	rev := revision{UUID: entry.UUID, Labels: maps.Clone(info.Labels), Updated: info.Updated}
	if err := r.write(info.Name, rev); err != nil {
		return snapshots.Info{}, err
	}
	return info, nil
}

// write stores a revision and deletes the stale rows in one transaction.
func (r *revisions) write(key string, rev revision) error {
	value, err := json.Marshal(rev)
	if err != nil {
		return err
	}
	r.mu.RLock()
	stale := maps.Clone(r.stale)
	r.mu.RUnlock()
	err = r.db.Update(func(tx *bolt.Tx) error {
		bucket, err := tx.CreateBucketIfNotExists(revisionsBucket)
		if err != nil {
			return err
		}
		for old := range stale {
			if err := bucket.Delete([]byte(old)); err != nil {
				return err
			}
		}
		return bucket.Put([]byte(key), value)
	})
	if err != nil {
		return fmt.Errorf("labels of %q: %w", key, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.stale, func(old string, _ bool) bool { return stale[old] })
	r.byKey[key] = rev
	return nil
}
