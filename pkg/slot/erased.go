package slot

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// erased records whether slots were erased in their areas, and may not be gone durably.
type erased struct {
	turn     chan struct{} // full during syncErased; other callers wait
	unsynced bool          // protected by turn
}

// SyncDirectories makes durable what a driver that was killed may have left.
func (s *Session) SyncDirectories() error {
	err := s.syncErased(true)
	if errors.Is(err, unix.EROFS) { // the pool is opened again when it can be written
		s.pool.erased.unsynced = false
		return nil
	}
	return err
}

// syncErased makes the removal of slots durable that were erased in their areas since the last
// call. With now it always syncs.
func (s *Session) syncErased(now bool) error {
	e := &s.pool.erased
	silent, _ := s.Silence()
	select {
	case e.turn <- struct{}{}:
		defer func() { <-e.turn }()
	case <-silent:
		return s.SilentError("Sync")
	}
	if !now && !e.unsynced {
		return nil
	}
	lists := []pool.Slot{{}} // the pool's directory, and its areas
	for _, area := range pool.Areas {
		lists = append(lists, pool.Slot{Area: area})
	}
	err := s.Sync(lists...)
	e.unsynced = err != nil
	return err
}
