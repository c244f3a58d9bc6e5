package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"

	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
)

// disk is a pool on a real btrfs. It keeps no descriptor open between operations, so that the
// filesystem can be unmounted at any time. Each operation opens the pool's directory, verifies
// that it is still the same one (see place), and works below that descriptor. After an unmount no
// operation reaches the filesystem below, or another one.
type disk struct {
	node  *node
	path  string // of the pool's directory
	place place  // of the pool's directory
	// mounted is set if a filesystem was mounted at path when the pool was found.
	mounted bool
	id      string // of the pool; "": none yet
	mode    btrfs.QuotaMode
	// readOnly is set if the pool could not be written when it was found. Its limits may then
	// differ from its records.
	readOnly bool
	// quotaOff is set if quota could not be turned on because of readOnly.
	quotaOff bool
	options  []string // mount options when the pool was prepared; nil: unknown

	freezes freezes

	mu     sync.Mutex // protects shared
	shared *root      // by new operations; nil: none
}

var _ Filesystem = (*disk)(nil)

func (n *node) Open(_ context.Context, name string) (Filesystem, error) {
	d := &disk{node: n, path: filepath.Join(n.pools, name)}
	r, is, err := d.openAny()
	if err != nil {
		return nil, fmt.Errorf("pool %q: %w", name, err)
	}
	defer r.Close()
	d.place = is // whatever is mounted from now on, Prepare and each operation look for this one
	if d.mounted, err = n.acceptable(name, true); err != nil {
		return nil, err
	}
	if err := d.read(r); err != nil {
		return nil, fmt.Errorf("pool %q: %w", name, r.Named(err))
	}
	return d, nil
}

// read reads what Prepare needs to know.
func (d *disk) read(r *root) error {
	readOnly, err := btrfs.IsReadOnly(r.dir)
	if err != nil {
		return err
	}
	d.readOnly = readOnly
	id, err := readIdentity(r.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	d.id = id.ID
	d.mode, err = btrfs.ModeOf(r.dir)
	return err
}

func (d *disk) Prepare(ctx context.Context) error {
	r, err := d.openRoot()
	if err != nil {
		return err
	}
	defer r.Close()
	if err := d.prepare(ctx, r); err != nil {
		return fmt.Errorf("pool %q: %w", filepath.Base(d.path), r.Named(err))
	}
	return nil
}

func (d *disk) prepare(ctx context.Context, r *root) (err error) {
	switch {
	case d.node.passive && d.id == "":
		return fmt.Errorf("%s: %w", filepath.Join(d.path, identityFile), fs.ErrNotExist)
	case d.node.passive:
		return nil
	case d.id == "":
		d.id, err = r.identify()
	default:
		err = r.makeAreas()
	}
	if err != nil {
		return err
	}
	if err := d.enableQuota(ctx, r); err != nil {
		return fmt.Errorf("quota %s: %w", d.node.quota, err)
	}
	// The disk has just answered: reading the mount options of a silent disk keeps the mount table
	// of the node locked.
	if d.options, err = mount.Options(r.dir); err != nil {
		klog.FromContext(ctx).Error(err, "Mount options cannot be read, so no volume is known whose compression they overrule", "path", d.path)
	}
	return nil
}

// enableQuota turns on the wanted mode. It refuses a filesystem with another mode, under which
// limits would have another meaning, or none.
func (d *disk) enableQuota(ctx context.Context, r *root) error {
	n, want := d.node, d.node.quota
	if want == QuotaAuto {
		if want = d.mode; want == btrfs.QuotaNone {
			want = n.usual(d.id)
		}
		defer func() {
			if d.mode != btrfs.QuotaNone {
				n.modes.Store(d.id, d.mode)
			}
		}()
	}
	has := d.mode
	switch {
	case want == btrfs.QuotaNone, want == has:
		d.mode = want
		return nil
	case has != btrfs.QuotaNone:
		return fmt.Errorf("the filesystem has %s quota: %w; disable it there (btrfs quota disable), or take --quota auto", has, btrfs.ErrQuotaMode)
	case d.readOnly:
		d.quotaOff = true // nothing is written, so nothing needs a limit
		return nil
	}
	d.mode = want
	err := btrfs.EnableQuota(r.dir, want)
	if err == nil { // after an error the pool is refused for it, and opened again every second
		klog.FromContext(ctx).Info("Quota enabled on the whole filesystem", "path", d.path, "mode", want)
	}
	return err
}

// usual returns the mode that QuotaAuto turns on: the last one that the pool had, else full.
func (n *node) usual(poolID string) btrfs.QuotaMode {
	if had, ok := n.modes.Load(poolID); ok {
		return had.(btrfs.QuotaMode)
	}
	return btrfs.QuotaFull
}

func (d *disk) PoolID() string { return d.id }

func (d *disk) QuotaMode() btrfs.QuotaMode { return d.mode }

func (d *disk) MountOptions() []string { return d.options }

func (d *disk) SlotPath(s Slot) string {
	return filepath.Join(d.path, string(s.Area), s.Name, subvolumeName)
}

// Alive also fails if the pool has become writable, or if its quota was turned off or has another
// mode. The pool is then opened again, with its limits.
func (d *disk) Alive() error {
	r, err := d.openRoot() // not the shared descriptor, whose mount may be detached
	if err != nil {
		return err
	}
	defer r.Close()
	if d.readOnly {
		if readOnly, err := btrfs.IsReadOnly(r.dir); err == nil && !readOnly {
			return errors.New("it can be written now, and is opened again for its quota")
		}
	}
	id, err := readIdentity(r.path)
	if err == nil && id.ID != d.id {
		err = fmt.Errorf("its ID is %s now, it was %s", id.ID, d.id)
	}
	if err == nil {
		err = r.checkQuota()
	}
	if err != nil {
		return fmt.Errorf("pool at %s: %w", d.path, r.Named(err))
	}
	return nil
}
