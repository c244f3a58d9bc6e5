package snapshot

import (
	"fmt"
	"slices"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
)

// visit is a pool that is open for an operation.
type visit struct {
	pool    *servedPool
	session *slot.Session // nil: err is why the pool cannot be opened
	err     error
}

// visits are the pools in use that are open for an operation.
type visits []visit

// visit opens all pools in use for an operation that does not know yet which of them it needs.
// The operation must call end.
func (e *Engine) visit() visits {
	return each(e.allPools(), func(p *servedPool) visit {
		session, err := p.Open()
		return visit{p, session, err}
	})
}

func (v visits) end() {
	for _, in := range v {
		if in.session != nil {
			in.session.Close()
		}
	}
}

// of returns the session of a pool.
func (v visits) of(p *servedPool) (*slot.Session, error) {
	for _, in := range v {
		if in.pool == p {
			return in.session, in.err
		}
	}
	return nil, fmt.Errorf("pool %q: %w: it has just come", p.Name, ErrBusy)
}

// steady returns ErrBusy if pools have come or gone since the visits began: a new one may contain
// ref.
func (e *Engine) steady(visits visits, ref meta.Ref) error {
	if slices.EqualFunc(visits, e.allPools(), func(in visit, p *servedPool) bool { return in.pool == p }) {
		return nil
	}
	return fmt.Errorf("%s: %w: the pools have just changed", ref, ErrBusy)
}
