package snaptest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// Env is a new node with the empty pool pool.Default, of at least 2 GiB.
type Env interface {
	Host() pool.Host
	Mode() btrfs.QuotaMode
	// Pool returns the Hands in a pool.
	Pool(name string) Hands
	// AddPool mounts another empty pool, before or while an engine runs.
	AddPool(t testing.TB, name string)
	// Detach unmounts a pool that AddPool mounted, Attach mounts it again.
	Detach(t testing.TB, name string)
	Attach(t testing.TB, name string)
}

// Hands do what pods and administrators do in a pool without the engine; see pooltest.Filesystem.
type Hands interface {
	Write(at pool.Slot, data string) error
	Read(at pool.Slot) (string, error)
	Nest(at pool.Slot, name string) error
	Vanish(at pool.Slot) error
	PlantSlot(at pool.Slot, record []byte) error
	PlantSubvolume(at pool.Slot, data string) error
	PlantFile(at pool.Slot) error
	RemoveFile(at pool.Slot) error
	CutDisk(at pool.Slot, size int64) error
	SetWritable(at pool.Slot, writable bool) error
	SetReadOnly(readOnly bool)
	// PeriodicCommit updates the usage.
	PeriodicCommit()
}

var _ Hands = (*pooltest.Filesystem)(nil)

// memory is the Env over pooltest.Host.
type memory struct {
	host *pooltest.Host
	mode btrfs.QuotaMode
}

// NewEnv returns a node whose pools are in memory.
func NewEnv(mode btrfs.QuotaMode) Env { return &memory{pooltest.NewHost(mode), mode} }

func (m *memory) Host() pool.Host                   { return m.host }
func (m *memory) Mode() btrfs.QuotaMode             { return m.mode }
func (m *memory) Pool(name string) Hands            { return m.host.Pool(name) }
func (m *memory) AddPool(_ testing.TB, name string) { m.host.Add(name, pooltest.NewFilesystem(m.mode)) }
func (m *memory) Detach(_ testing.TB, name string)  { m.host.Detach(name) }
func (m *memory) Attach(_ testing.TB, name string)  { m.host.Attach(name) }

// testCase is a named guarantee of the engine. Each case runs on its own node.
type testCase struct {
	name string
	run  func(*rig)
}

// Run proves that the engine keeps its guarantees on the nodes that open returns, one for each
// case.
func Run(t *testing.T, open func(t testing.TB) Env) {
	for _, c := range slices.Concat(creation, groups, removal, damage, pooling) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := &rig{T: t, env: open(t), index: filepath.Join(t.TempDir(), "index.db")}
			r.host = r.env.Host()
			r.open()
			defer func() { r.check(r.e.Close()) }()
			c.run(r)
			r.settle()
		})
	}
}

// rig is a node with an engine and the helpers of the cases.
type rig struct {
	*testing.T
	env   Env
	host  pool.Host
	index string // path
	e     *snapshot.Engine
}

func (r *rig) open() {
	r.Helper()
	index, _, err := index.Open(r.index)
	r.check(err)
	r.e, err = snapshot.Open(r.Context(), r.host, index, snapshot.Patience(time.Minute))
	r.check(err)
}

// reopen restarts the driver.
func (r *rig) reopen() {
	r.Helper()
	r.check(r.e.Close())
	r.open()
}

func (r *rig) check(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// wants fails unless err is target and contains all words.
func (r *rig) wants(err, target error, words ...string) {
	r.Helper()
	if !errors.Is(err, target) {
		r.Fatalf("got error %v, wanted %v", err, target)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			r.Errorf("%q is missing from %q", word, err)
		}
	}
}

// equal compares two values by their JSON.
func (r *rig) equal(got, want any) {
	r.Helper()
	a, err := json.Marshal(got)
	r.check(err)
	b, err := json.Marshal(want)
	r.check(err)
	if string(a) != string(b) {
		r.Errorf("got %s, wanted %s", a, b)
	}
}

func (r *rig) pool() Hands { return r.env.Pool(pool.Default) }

func sized(name string, bytes int64) snapshot.Spec {
	return snapshot.Spec{Name: name, Size: snapshot.Range{Required: bytes}}
}

// volume makes a volume of 5 MiB with data.
func (r *rig) volume(name, data string) meta.Entry {
	r.Helper()
	entry := r.prepare(sized(name, 5*mib), meta.Ref{})
	r.check(r.pool().Write(at(entry), data))
	return entry
}

func (r *rig) prepare(spec snapshot.Spec, source meta.Ref) meta.Entry {
	r.Helper()
	entry, err := r.e.Prepare(r.Context(), spec, source)
	r.check(err)
	return entry
}

func (r *rig) commit(name, volume string) meta.Entry {
	r.Helper()
	entry, err := r.e.Commit(r.Context(), snapshot.Spec{Name: name}, volume)
	r.check(err)
	return entry
}

func (r *rig) remove(ref meta.Ref) {
	r.Helper()
	r.check(r.e.Remove(r.Context(), ref))
}

func (r *rig) stat(ref meta.Ref) error {
	_, err := r.e.Stat(r.Context(), ref)
	return err
}

func (r *rig) contains(entry meta.Entry, want string) {
	r.Helper()
	got, err := r.env.Pool(entry.Pool).Read(at(entry))
	r.check(err)
	if got != want {
		r.Errorf("%s contains %q, wanted %q", entry.Ref(), got, want)
	}
}

// limited fails unless the limit of a volume is its size.
func (r *rig) limited(entry meta.Entry) {
	r.Helper()
	usage, err := r.e.Usage(r.Context(), entry.Ref())
	if r.env.Mode() == btrfs.QuotaNone {
		r.wants(err, pool.ErrNoQuota)
		return
	}
	r.check(err)
	if usage.Limit != entry.Size {
		r.Errorf("qgroup limit of %s is %d, wanted %d", entry.Ref(), usage.Limit, entry.Size)
	}
}

// at returns the slot of an entry.
func at(entry meta.Entry) pool.Slot {
	return pool.Slot{Area: pool.Area(entry.Kind), Name: entry.ID}
}

// findings returns the planned problems as `path: problem`, sorted.
func (r *rig) findings() []string {
	r.Helper()
	found, err := r.e.Plan(r.Context())
	r.check(err)
	var lines []string
	for _, f := range found {
		// The kernel counts, and drops destroyed subvolumes, at a time of its own.
		if f.Problem != slot.StaleQuota && f.Problem != pool.QuotaInconsistent {
			lines = append(lines, fmt.Sprintf("%s: %s", f.Path, f.Problem))
		}
	}
	slices.Sort(lines)
	return lines
}

func (r *rig) planned(want ...string) {
	r.Helper()
	if got := r.findings(); !slices.Equal(got, want) {
		r.Errorf("planned %q, wanted %q", got, want)
	}
}

func (r *rig) reconcile() {
	r.Helper()
	findings, err := r.e.Reconcile(r.Context())
	r.check(err)
	for _, f := range findings {
		if f.Error != "" {
			r.Errorf("%v: %s", f, f.Error)
		}
	}
}

// list returns the IDs that Walk passes.
func (r *rig) list(class meta.Class) []string {
	r.Helper()
	ids := []string{}
	r.check(r.e.Walk(r.Context(), class, "", func(e meta.Entry) bool { ids = append(ids, e.ID); return true }))
	return ids
}

// settle proves at the end of a case that nothing is left to repair and that the index agrees
// with the ledger.
func (r *rig) settle() {
	r.Helper()
	ctx := r.Context()
	r.eventually(func() error {
		r.reconcile()
		findings, err := r.e.Plan(ctx)
		for _, f := range findings {
			if f.Repair == "" {
				continue
			}
			err = fmt.Errorf("left to repair: %v", f)
			if f.Problem != slot.StaleQuota && f.Problem != pool.QuotaInconsistent {
				r.Fatal(err) // only the engine could repair it
			}
		}
		return err
	})
	items, err := r.e.Inventory(ctx)
	r.check(err)
	ledger := map[meta.Class][]string{meta.Volumes: {}, meta.Snapshots: {}}
	for _, item := range items {
		if item.Status == "Ready" {
			class := item.Kind.Class()
			ledger[class] = append(ledger[class], item.ID)
		}
	}
	for class, ids := range ledger {
		slices.Sort(ids)
		r.equal(r.list(class), ids)
	}
}

// patience is far more than any step takes: on a busy disk, turning on quota alone has taken 10
// s.
const patience = 5 * time.Minute

// eventually fails with the last error of fn when patience ends.
func (r *rig) eventually(fn func() error) {
	r.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = fn(); err == nil {
			return
		}
	}
	r.Fatal(err)
}

// follow runs the engine until the case ends.
func (r *rig) follow() {
	ctx, cancel := context.WithCancel(r.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.e.Run(ctx)
	}()
	r.Cleanup(func() { cancel(); <-done })
}

// inUse waits until a pool is in use or, without want, out of use.
func (r *rig) inUse(name string, want bool) {
	r.Helper()
	r.eventually(func() error {
		if _, ok := r.e.PoolIDs()[name]; ok != want {
			return fmt.Errorf("pool %q in use: %v: %+v", name, ok, r.e.Pools(r.Context()))
		}
		return nil
	})
}
