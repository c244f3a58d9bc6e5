package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
)

// Finding is one difference between a pool and its ledger, or one fault of a pool.
type Finding = slot.Finding

// Duplicate is the problem of an ID that two pools contain.
const Duplicate pool.Problem = "Duplicate"

// Plan compares every pool with its ledger, and returns what Reconcile would do. It changes
// nothing. It omits locked slots. With a running engine it also omits qgroups that became stale
// since the last sweep, which removes them.
func (e *Engine) Plan(context.Context) ([]Finding, error) {
	return e.eachPool(func(p *servedPool, s *slot.Session) ([]Finding, []*slot.Slot, error) {
		var findings []Finding
		slots, actions, err := s.Plan()
		for _, a := range actions {
			if a.Routine && e.index != nil {
				continue
			}
			e.confirm(s, a, func(a slot.Action) { findings = append(findings, a.Finding) })
		}
		return findings, slots, err
	})
}

// Reconcile does what Plan returns, and rebuilds the index from the ledgers. Each finding has the
// result of its repair. Reconcile may run beside other operations, whose slots it skips.
func (e *Engine) Reconcile(ctx context.Context) ([]Finding, error) {
	findings, err := e.eachPool(func(p *servedPool, s *slot.Session) ([]Finding, []*slot.Slot, error) {
		if err := s.Thawed(); err != nil {
			return nil, nil, err
		}
		return e.repair(ctx, s)
	})
	return findings, errors.Join(err, e.syncIndex())
}

// looked is the result of a look at one pool.
type looked struct {
	findings []Finding
	slots    []*slot.Slot
	err      error
}

// eachPool returns what fn finds in each pool, and the faults of pools. The slots that fn returns
// are compared between pools.
func (e *Engine) eachPool(fn func(*servedPool, *slot.Session) ([]Finding, []*slot.Slot, error)) ([]Finding, error) {
	findings := e.unusable()
	var errs []error
	pools := e.allPools()
	results := each(pools, func(p *servedPool) (found looked) {
		s, err := p.Open()
		if err == nil {
			defer s.Close()
			found.findings, found.slots, err = fn(p, s)
		}
		found.findings, found.err = append(found.findings, p.ConditionFindings()...), err
		return found
	})
	for i, p := range pools {
		err := results[i].err
		findings = append(findings, results[i].findings...)
		if errors.Is(err, pool.ErrAway) || errors.Is(err, pool.ErrFrozen) { // the other pools are not affected
			findings = append(findings, Finding{Pool: p.Name, Problem: pool.ProblemOf(err), Detail: err.Error()})
			err = nil
		}
		errs = append(errs, err)
	}
	return append(findings, duplicates(pools, results)...), errors.Join(errs...)
}

// unusable returns findings for the directories that cannot be used as pools.
func (e *Engine) unusable() []Finding {
	e.mu.RLock()
	defer e.mu.RUnlock()
	var findings []Finding
	for name, err := range e.broken {
		findings = append(findings, Finding{Pool: name, Problem: pool.ProblemOf(err), Detail: err.Error()})
	}
	slices.SortFunc(findings, func(a, b Finding) int { return cmp.Compare(a.Pool, b.Pool) })
	return findings
}

// duplicates returns findings for the IDs that more than one pool contains. Only people know
// which one is meant.
func duplicates(pools []*servedPool, results []looked) (findings []Finding) {
	first := map[meta.Ref]string{}
	for i, p := range pools {
		for _, l := range results[i].slots {
			if !l.IsReady() {
				continue
			}
			ref := l.Record.Ref()
			if other, ok := first[ref]; ok && other != p.Name {
				findings = append(findings, Finding{Pool: p.Name, Path: l.At.String(), Problem: Duplicate,
					Detail: fmt.Sprintf("%s is also in pool %q; remove one of them", ref, other)})
				continue
			}
			first[ref] = p.Name
		}
	}
	return findings
}
