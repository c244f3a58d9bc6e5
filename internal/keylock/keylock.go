// Package keylock locks things by their keys, each exclusively or shared.
package keylock

import (
	"context"
	"sync"
	"time"
)

// Patience is how long Acquire waits. An operation on a disk that answers takes less, and a sidecar
// waits longer for its answer.
const Patience = 5 * time.Second

// Set locks keys. The zero value is ready. All methods may run concurrently.
type Set[K comparable] struct {
	mu    sync.Mutex // protects what follows
	users map[K]int  // how many share the lock; -1: exclusive
	freed chan struct{}
}

// Acquire locks the keys of exclusive, and shares the locks of those of shared, all or none. No key
// may be in both. Acquire waits for Patience, or until ctx ends, and then returns a key that is busy.
// release unlocks the keys, once.
func (s *Set[K]) Acquire(ctx context.Context, exclusive, shared []K) (release func(), busy K, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	for {
		release, busy, freed := s.take(exclusive, shared)
		if release != nil {
			return release, busy, true
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, busy, false
		}
	}
}

// TryAcquire is Acquire without waiting.
func (s *Set[K]) TryAcquire(exclusive ...K) (release func(), ok bool) {
	release, _, _ = s.take(exclusive, nil)
	return release, release != nil
}

// take locks all, or returns a nil release, a busy key, and what is closed when a lock is released.
func (s *Set[K]) take(exclusive, shared []K) (release func(), busy K, freed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users == nil {
		s.users, s.freed = map[K]int{}, make(chan struct{})
	}
	for _, key := range exclusive {
		if s.users[key] != 0 {
			return nil, key, s.freed
		}
	}
	for _, key := range shared {
		if s.users[key] < 0 {
			return nil, key, s.freed
		}
	}
	for _, key := range exclusive {
		s.users[key] = -1
	}
	for _, key := range shared {
		s.users[key]++
	}
	return func() { s.release(exclusive, shared) }, busy, nil
}

func (s *Set[K]) release(exclusive, shared []K) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range exclusive {
		delete(s.users, key)
	}
	for _, key := range shared {
		if s.users[key]--; s.users[key] == 0 {
			delete(s.users, key)
		}
	}
	close(s.freed)
	s.freed = make(chan struct{})
}
