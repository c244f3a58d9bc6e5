package snapshot

import (
	"fmt"
	"maps"
)

// Exclude keeps the pools with these IDs out of use until a later call omits them. They are reported
// as unusable for their reasons. Run drops those in use at once. Volumes that are mounted stay
// mounted.
func (e *Engine) Exclude(reasons map[string]error) {
	e.mu.Lock()
	same := maps.EqualFunc(e.excluded, reasons, func(a, b error) bool { return a.Error() == b.Error() })
	e.excluded = maps.Clone(reasons)
	e.mu.Unlock()
	if same {
		return
	}
	select {
	case e.wake <- struct{}{}:
	default: // a look is already requested
	}
}

// exclusion returns why a pool is excluded, nil if it is not.
func (e *Engine) exclusion(p *servedPool) error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if reason := e.excluded[p.ID]; reason != nil {
		return fmt.Errorf("pool %q: %w", p.Name, reason)
	}
	return nil
}
