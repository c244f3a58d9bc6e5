package snaptest

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// busy proves which requests a running operation blocks, and which it does not.
func busy(r *rig) {
	var taken atomic.Bool // the first snapshot has begun
	reached, open := make(chan struct{}), make(chan struct{})
	r.host = pooltest.Around(r.host, func(s pooltest.Step, do func() error) error {
		if s.Method == "Snapshot" && taken.CompareAndSwap(false, true) {
			close(reached)
			<-open
		}
		return do()
	})
	r.volume("source", "data")
	r.reopen()
	ctx := r.Context()
	done := make(chan error)
	go func() {
		_, err := r.e.Commit(ctx, snapshot.Spec{Name: "first"}, "source")
		done <- err
	}()
	<-reached

	gone, leave := context.WithCancel(ctx) // of a caller that does not wait
	leave()
	_, err := r.e.Commit(gone, snapshot.Spec{Name: "first"}, "source")
	r.wants(err, snapshot.ErrBusy, "first")
	_, err = r.e.Resize(gone, "source", snapshot.Range{Required: 9 * mib})
	r.wants(err, snapshot.ErrBusy, "source")
	r.wants(r.e.Remove(gone, meta.Volume("source")), snapshot.ErrBusy)
	r.wants(r.e.Remove(gone, meta.Snapshot("first")), snapshot.ErrBusy)
	_, err = r.e.Prepare(gone, snapshot.Spec{Name: "copy"}, meta.Snapshot("first"))
	r.wants(err, snapshot.ErrBusy)
	r.wants(r.stat(meta.Snapshot("first")), snapshot.ErrNotFound)
	r.planned() // a running operation is no problem
	r.reconcile()
	r.check(r.stat(meta.Volume("source")))
	r.commit("second", "source") // beside the first
	r.volume("other", "")

	close(open)
	r.check(<-done)
	r.check(r.stat(meta.Snapshot("first")))
	r.remove(meta.Volume("source"))
}

func isAny(err error, targets ...error) bool {
	for _, target := range targets {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

func contextWithCancel(r *rig) (context.Context, context.CancelFunc) {
	return context.WithCancel(r.Context())
}

// snapOf returns the volume of a name.
func snapOf(r *rig, volume string) meta.Entry {
	r.Helper()
	entry, err := r.e.Stat(r.Context(), meta.Volume(volume))
	r.check(err)
	return entry
}
