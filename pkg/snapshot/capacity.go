package snapshot

import (
	"context"
)

// Capacity is the free space of a pool for volumes, in bytes.
type Capacity struct {
	PoolID      string `json:"poolID"`
	Available   int64  `json:"available"`   // what can be written now, without the headroom
	MaximumSize int64  `json:"maximumSize"` // of one volume
	MinimumSize int64  `json:"minimumSize"` // of one volume
}

// Capacity returns the free space of a pool; an empty name stands for the default one. A pool
// that cannot be written has none.
func (e *Engine) Capacity(_ context.Context, name string) (Capacity, error) {
	p, err := e.pool(name)
	if err != nil {
		return Capacity{}, err
	}
	session, err := p.Open()
	if err != nil {
		return Capacity{}, err
	}
	defer session.Close()
	available, err := session.Available()
	if err != nil {
		return Capacity{}, err
	}
	left := available / MinSize * MinSize
	return Capacity{PoolID: p.ID, Available: left, MaximumSize: left, MinimumSize: MinSize}, nil
}
