package pool

import (
	"sync"
	"time"
)

// freshOutside is how long RecentOutside reuses a result. Requests for a thousand lost volumes,
// one by one, then do not read the root tree for each.
const freshOutside = time.Second

// outsideLook is the last result of Outside.
type outsideLook struct {
	mu    sync.Mutex // protects what follows; held during Outside
	at    time.Time
	found []OutsideSubvolume
}

// RecentOutside is Outside, or its result of less than a second ago.
func (s *Session) RecentOutside() ([]OutsideSubvolume, error) {
	s.outside.mu.Lock()
	defer s.outside.mu.Unlock()
	if time.Since(s.outside.at) < freshOutside {
		return s.outside.found, nil
	}
	return s.lookOutside()
}

// Outside is Directory.Outside, and keeps the result for RecentOutside.
func (s *Session) Outside() ([]OutsideSubvolume, error) {
	s.outside.mu.Lock()
	defer s.outside.mu.Unlock()
	return s.lookOutside()
}

// lookOutside reads the filesystem. The caller holds outside.mu.
func (s *Session) lookOutside() ([]OutsideSubvolume, error) {
	found, err := look(s, "Outside", Slot{}, s.patience.Walk, s.directory.Outside)
	if err == nil {
		s.outside.found, s.outside.at = found, time.Now()
	}
	return found, err
}
