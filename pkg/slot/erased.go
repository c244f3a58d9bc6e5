package slot

import (
	"errors"

	"golang.org/x/sys/unix"
)

// erased records whether slots were erased in their areas, and may not be gone durably.
type erased struct {
	turn      chan struct{} // full during commitErased; other callers wait
	unsettled bool          // protected by turn
}

// CommitErased makes durable what a driver that was killed may have left.
func (s *Session) CommitErased() error {
	err := s.commitErased(true)
	if errors.Is(err, unix.EROFS) { // the pool is opened again when it can be written
		s.pool.erased.unsettled = false
		return nil
	}
	return err
}

// commitErased makes the removal of slots durable that were erased in their areas since the last
// call. With now it always commits.
func (s *Session) commitErased(now bool) error {
	e := &s.pool.erased
	silent, _ := s.Silence()
	select {
	case e.turn <- struct{}{}:
		defer func() { <-e.turn }()
	case <-silent:
		return s.SilentError("Commit")
	}
	if !now && !e.unsettled {
		return nil
	}
	err := s.Commit()
	e.unsettled = err != nil
	return err
}
