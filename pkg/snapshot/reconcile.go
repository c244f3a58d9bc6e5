package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

const (
	// UnfinishedCreate is a slot whose create was interrupted. Repair: completed if the subvolume
	// exists, else undone.
	UnfinishedCreate pool.Problem = "UnfinishedCreate"
	// UnfinishedRemove is a slot whose removal was interrupted. Repair: completed.
	UnfinishedRemove pool.Problem = "UnfinishedRemove"
	// WrongLimit is a volume whose limit differs from its size. Repair: set again.
	WrongLimit pool.Problem = "WrongLimit"
	// StaleQuota are qgroups of destroyed subvolumes. Repair: removed.
	StaleQuota pool.Problem = "StaleQuota"
	// Lost is a record whose subvolume is gone. Kept, and never replaced by an empty one.
	Lost pool.Problem = "Lost"
	// Damaged is a record whose subvolume exists but cannot be read. Kept.
	Damaged pool.Problem = "Damaged"
	// OutsidePool is a volume or snapshot of the pool that lies outside of it, on the same
	// filesystem, and has no slot in it. Kept.
	OutsidePool pool.Problem = "OutsidePool"
	// Foreign is something that btrfs-csi did not make. Kept. In the slot of a volume or snapshot
	// it blocks the removal.
	Foreign pool.Problem = "Foreign"
	// UnreadableRecord is a record that is damaged, of a later version, or in the wrong slot.
	// Kept.
	UnreadableRecord pool.Problem = "UnreadableRecord"
	// Writable is a snapshot or view that somebody made writable. Kept: its content may have
	// changed.
	Writable pool.Problem = "Writable"
	// ReadOnlyVolume is a volume whose subvolume somebody made read-only. Kept.
	ReadOnlyVolume pool.Problem = "ReadOnlyVolume"
	// Duplicate is an ID that two pools contain.
	Duplicate pool.Problem = "Duplicate"
)

// Finding is one difference between a pool and its ledger, or one fault of a pool.
type Finding struct {
	Pool     string       `json:"pool"`
	Path     string       `json:"path,omitempty"` // within the pool
	Problem  pool.Problem `json:"problem"`
	Detail   string       `json:"detail"`
	Repair   string       `json:"repair,omitempty"` // what Reconcile does; empty if only people can
	Repaired bool         `json:"repaired"`
	Error    string       `json:"error,omitempty"` // why the repair failed
	// Routine is set if every driver does the repair as part of its normal work. The finding is
	// harmless until then, and no fault.
	Routine bool `json:"routine,omitempty"`
}

// action is a finding with its repair; run is nil if it is only reported.
type action struct {
	Finding
	slot pool.Slot // zero for a finding about the whole pool
	run  func() error
}

// Plan compares every pool with its ledger, and returns what Reconcile would do. It changes
// nothing. It omits locked slots. With a running engine it also omits qgroups that became stale
// since the last sweep, which removes them.
func (e *Engine) Plan(context.Context) ([]Finding, error) {
	return e.eachPool(func(p *servedPool) ([]Finding, error) {
		var findings []Finding
		_, actions, err := p.plan()
		for _, a := range actions {
			if a.Routine && e.index != nil {
				continue
			}
			e.confirm(p, a, func(a action) { findings = append(findings, a.Finding) })
		}
		return findings, err
	})
}

// Reconcile does what Plan returns, and rebuilds the index from the ledgers. Each finding has the
// result of its repair. Reconcile may run beside other operations, whose slots it skips.
func (e *Engine) Reconcile(ctx context.Context) ([]Finding, error) {
	findings, err := e.eachPool(func(p *servedPool) ([]Finding, error) {
		if err := p.Thawed(); err != nil {
			return nil, err
		}
		findings, _, err := e.repair(ctx, p)
		return findings, err
	})
	return findings, errors.Join(err, e.syncIndex())
}

func (e *Engine) eachPool(fn func(*servedPool) ([]Finding, error)) ([]Finding, error) {
	findings := e.unusable()
	var errs []error
	type looked struct {
		findings []Finding
		err      error
	}
	pools := e.allPools()
	results := each(pools, func(p *servedPool) looked {
		findings, err := fn(p)
		return looked{append(findings, p.conditionFindings()...), err}
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
	duplicates, err := e.duplicates()
	return append(findings, duplicates...), errors.Join(append(errs, err)...)
}

// repair runs the plan of one pool. It returns the slots as they are afterwards.
func (e *Engine) repair(ctx context.Context, p *servedPool) (findings []Finding, slots []scanned, err error) {
	slots, actions, err := p.plan()
	if err != nil {
		return nil, nil, err
	}
	changed := map[pool.Slot]bool{}
	for _, a := range actions {
		if err := ctx.Err(); err != nil {
			return findings, nil, err
		}
		e.confirm(p, a, func(a action) {
			findings = append(findings, a.apply())
			changed[a.slot] = changed[a.slot] || a.run != nil
		})
	}
	slots, err = p.lookAgain(slots, changed)
	return findings, slots, err
}

// lookAgain returns the slots, with the current state of those that have changed.
func (p *servedPool) lookAgain(slots []scanned, changed map[pool.Slot]bool) ([]scanned, error) {
	now := slots[:0]
	for _, s := range slots {
		if changed[s.slot] {
			var err error
			s, err = p.look(s.slot)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
		}
		now = append(now, s)
	}
	return now, nil
}

// confirm looks at the slot of a finding again under its lock, because an operation may have
// ended since the first look. It calls fn for each fault that remains.
func (e *Engine) confirm(p *servedPool, a action, fn func(action)) {
	if a.slot == (pool.Slot{}) {
		fn(a)
		return
	}
	ref, _ := a.slot.Ref()
	release, err := e.locks.acquire(ref, meta.Ref{})
	if err != nil {
		return
	}
	defer release()
	s, err := p.look(a.slot)
	if err != nil {
		return // it is gone
	}
	for _, again := range s.judge(p.limitOf) {
		fn(again)
	}
}

// limitOf returns the limit of one subvolume, in bytes, 0 for none; false if it cannot be read,
// as in a pool without quota.
func (p *servedPool) limitOf(subvolume uint64) (int64, bool) {
	usage, err := p.Usage(subvolume)
	return usage.Limit, err == nil
}

// apply runs the repair, if any.
func (a action) apply() Finding {
	if a.run == nil {
		return a.Finding
	}
	if err := a.run(); err != nil {
		a.Error = err.Error()
	} else {
		a.Repaired = true
	}
	return a.Finding
}

func logFindings(ctx context.Context, findings []Finding) {
	for _, f := range findings {
		klog.FromContext(ctx).Info("Reconciled", "pool", f.Pool, "path", f.Path, "problem", f.Problem,
			"detail", f.Detail, "repair", f.Repair, "repaired", f.Repaired, "error", f.Error)
	}
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
func (e *Engine) duplicates() ([]Finding, error) {
	first := map[meta.Ref]string{}
	var findings []Finding
	for _, p := range e.allPools() {
		slots, err := p.scan()
		if errors.Is(err, pool.ErrAway) {
			continue // reported already
		}
		if err != nil {
			return nil, err
		}
		for _, s := range slots {
			if s.state != slotReady {
				continue
			}
			ref := s.record.Ref()
			if other, ok := first[ref]; ok && other != p.Name {
				findings = append(findings, Finding{Pool: p.Name, Path: s.slot.String(), Problem: Duplicate,
					Detail: fmt.Sprintf("%s is also in pool %q; remove one of them", ref, other)})
				continue
			}
			first[ref] = p.Name
		}
	}
	return findings, nil
}

// plan compares the pool with its ledger. It returns the slots and the actions.
func (p *servedPool) plan() ([]scanned, []action, error) {
	slots, err := p.scan()
	if err != nil {
		return nil, nil, err
	}
	limits, err := p.Limits()
	if err != nil {
		return nil, nil, err
	}
	limit := func(subvolume uint64) (int64, bool) { return limits[subvolume], limits != nil }
	var actions []action
	for _, s := range slots {
		if wrong := s.judge(limit); len(wrong) > 0 {
			actions = append(actions, wrong[0]) // confirm finds the others
		}
	}
	outside, err := p.planOutside(slots)
	if err != nil {
		return nil, nil, err
	}
	quota, err := p.planQuota()
	return slots, slices.Concat(actions, outside, quota), err
}

// judge returns all faults of a slot. While the slot contains something foreign, a repair that
// would remove the slot is dropped.
func (s *scanned) judge(limit func(subvolume uint64) (int64, bool)) []action {
	all := s.judgeState(limit)
	names, err := s.fs.Beside(s.slot)
	if err != nil || len(names) == 0 || s.state == slotForeign {
		return all
	}
	if s.state == slotDeclared || s.state == slotRemoving {
		all[0].Repair, all[0].run = "", nil
	}
	return append(all, s.fault(Foreign, obstacle(names), "", nil))
}

// fault returns one fault of the slot with its repair.
func (s *scanned) fault(problem pool.Problem, detail, repair string, run func() error) action {
	return action{slot: s.slot, run: run, Finding: Finding{
		Pool: s.pool.Name, Path: s.slot.String(), Problem: problem, Detail: detail, Repair: repair}}
}

// judgeState returns the faults that the slot's state shows.
func (s *scanned) judgeState(limit func(subvolume uint64) (int64, bool)) []action {
	switch s.state {
	case slotReady:
		return s.judgeReady(limit)
	case slotDeclared:
		return []action{s.fault(UnfinishedCreate, "declared, but no subvolume was made", "undo", s.undeclare)}
	case slotHalf:
		return []action{s.fault(UnfinishedCreate, "subvolume was made, but not completed", "complete", s.finish)}
	case slotRemoving:
		return []action{s.fault(UnfinishedRemove, "on its way out", "complete", s.finishRemove)}
	case slotLost:
		return []action{s.fault(Lost, s.lostDetail(), "", nil)}
	case slotDamaged:
		return []action{s.fault(Damaged, fmt.Sprintf("its data cannot be read (%v); mend the filesystem, or restore a snapshot", s.err), "", nil)}
	case slotForeign:
		return []action{s.fault(Foreign, s.foreignDetail(), "", nil)}
	}
	return []action{s.fault(UnreadableRecord, s.err.Error(), "", nil)}
}

// judgeReady returns the faults of a complete slot.
func (s *scanned) judgeReady(limit func(subvolume uint64) (int64, bool)) (all []action) {
	if s.record.Kind.ReadOnly() && !s.info.ReadOnly {
		all = append(all, s.fault(Writable, "was made writable; its content may have changed", "", nil))
	}
	if s.record.Kind != meta.Active {
		return all
	}
	if have, limited := limit(s.info.ID); limited && s.limitWrong(s.info.ID, have) {
		all = append(all, s.fault(WrongLimit, fmt.Sprintf("the qgroup limit is %d bytes, the size is %d", have, s.record.Size), "set",
			func() error { return s.setLimit(s.info.ID) }))
	}
	if s.info.ReadOnly {
		all = append(all, s.fault(ReadOnlyVolume, s.madeReadOnly(), "", nil))
	}
	return all
}

func (s *scanned) lostDetail() string {
	o, found, err := s.findOutside()
	if found {
		return "its data is not lost: " + o.WayBack()
	}
	if err != nil {
		return fmt.Sprintf("its record is there, its data is not, and cannot be looked for outside of the pool (%v)", err)
	}
	return "its record is there, its data is not; restore a snapshot, or delete it"
}

func (s *scanned) foreignDetail() string {
	if s.err != nil {
		return fmt.Sprintf("was not made by btrfs-csi (%v); it is kept", s.err)
	}
	return "was not made by btrfs-csi; it is kept"
}

// finish completes a slot, or undoes a copy that lacks part of its source.
func (s *scanned) finish() error {
	_, err := s.resume()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// undeclare removes an empty slot. It fails for one that contains foreign files.
func (s *scanned) undeclare() error {
	err := s.fs.Rmdir(s.slot)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// planQuota returns the actions that concern no single slot.
func (p *servedPool) planQuota() ([]action, error) {
	var actions []action
	known := p.stale.all()
	stale, err := p.StaleQuota()
	if err != nil {
		return nil, err
	}
	stale = slices.DeleteFunc(stale, func(id uint64) bool { // the sweep knows it, or knew it a moment ago
		_, was := known[id]
		return was || p.stale.has(id)
	})
	if len(stale) > 0 {
		actions = append(actions, action{
			Finding: Finding{Pool: p.Name, Problem: StaleQuota, Routine: true, Repair: "remove",
				Detail: fmt.Sprintf("accounting of %d subvolumes that are gone; a driver removes it by itself", len(stale))},
			run: func() error { return p.forgetAll(stale) },
		})
	}
	status, err := p.QuotaStatus()
	if err != nil {
		return nil, err
	}
	if needsRescan(status) {
		actions = append(actions, action{
			Finding: Finding{Pool: p.Name, Problem: pool.QuotaInconsistent, Detail: "sizes are not enforced until it has been rescanned", Repair: "rescan"},
			run:     p.rescan,
		})
	}
	return actions, nil
}

// forgetAll removes stale qgroups. maintainPool retries those that the kernel still needs.
func (p *servedPool) forgetAll(subvolumes []uint64) error {
	for _, subvolume := range subvolumes {
		if err := p.ForgetQuota(subvolume); err != nil {
			p.stale.add(subvolume)
		}
	}
	return nil
}

// String returns one line for people.
func (f Finding) String() string {
	parts := []string{f.Pool, f.Path, string(f.Problem), f.Detail}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ": ")
}
