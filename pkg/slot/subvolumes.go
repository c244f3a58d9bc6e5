package slot

import (
	"maps"
	"sync"
)

// subvolumes is a set of subvolume IDs. It is safe for concurrent use.
type subvolumes struct {
	mu  sync.Mutex // protects ids
	ids map[uint64]struct{}
}

func (s *subvolumes) add(ids ...uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ids == nil {
		s.ids = map[uint64]struct{}{}
	}
	for _, id := range ids {
		s.ids[id] = struct{}{}
	}
}

func (s *subvolumes) has(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.ids[id]
	return ok
}

func (s *subvolumes) remove(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ids, id)
}

// all returns a copy of the set.
func (s *subvolumes) all() map[uint64]struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.ids)
}
