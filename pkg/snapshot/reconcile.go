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

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

const (
	// UnfinishedCreate is a slot whose making was cut short. Repair: completed
	// where the subvolume is there, undone where it is not.
	UnfinishedCreate pool.Problem = "UnfinishedCreate"
	// UnfinishedRemove is a slot whose removal was cut short. Repair: completed.
	UnfinishedRemove pool.Problem = "UnfinishedRemove"
	// WrongLimit is a volume whose limit is not its size. Repair: set again.
	WrongLimit pool.Problem = "WrongLimit"
	// StaleQuota is accounting of subvolumes that are gone. Repair: removed.
	StaleQuota pool.Problem = "StaleQuota"
	// Lost is a record whose subvolume is gone. Never made anew, as empty.
	Lost pool.Problem = "Lost"
	// Damaged is a record whose subvolume is there and cannot be read. Kept.
	Damaged pool.Problem = "Damaged"
	// OutsidePool is a volume or snapshot of the pool that lies outside of it, on the same
	// filesystem, and for which nothing in the pool stands. Kept.
	OutsidePool pool.Problem = "OutsidePool"
	// Foreign is something that nobody declared. Kept. In the slot of a volume or snapshot
	// it stops that from being removed.
	Foreign pool.Problem = "Foreign"
	// UnreadableRecord is a record that is damaged, of a later version, or in
	// the wrong place. Kept.
	UnreadableRecord pool.Problem = "UnreadableRecord"
	// Writable is a snapshot or view that somebody made writable. Kept: its
	// content may have changed.
	Writable pool.Problem = "Writable"
	// ReadOnlyVolume is a volume that its owner, or somebody else, made read-only. Kept.
	ReadOnlyVolume pool.Problem = "ReadOnlyVolume"
	// Duplicate is an ID that is in two pools.
	Duplicate pool.Problem = "Duplicate"
)

// Finding is one thing that is not as it should be.
type Finding struct {
	Pool     string       `json:"pool"`
	Path     string       `json:"path,omitempty"` // within the pool
	Problem  pool.Problem `json:"problem"`
	Detail   string       `json:"detail"`
	Repair   string       `json:"repair,omitempty"` // what reconciling does; empty where it is for people
	Repaired bool         `json:"repaired"`
	Error    string       `json:"error,omitempty"` // why the repair failed
	// Routine is set for what every driver does by itself in the course of its work, and
	// that harms nobody until then: it is no fault.
	Routine bool `json:"routine,omitempty"`
}

// action is a finding with its repair; none for what is only reported.
type action struct {
	Finding
	slot pool.Slot // zero for what concerns the whole pool
	run  func() error
}

// Plan compares every pool with its ledger and returns what Reconcile would do.
// It changes nothing. What an operation under way is at is left out, and so is what the
// sweep of a running engine does next: the kernel is late to let go of what was destroyed,
// and the accounting of it is stale from then until the sweep.
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

// Reconcile does what Plan returns, and brings the index in line with the ledger.
// Each finding says what came of it. It may run beside other operations: what
// one of them holds is passed over.
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
		if errors.Is(err, pool.ErrAway) || errors.Is(err, pool.ErrFrozen) { // the others are no worse for it
			findings = append(findings, Finding{Pool: p.Name, Problem: pool.ProblemOf(err), Detail: err.Error()})
			err = nil
		}
		errs = append(errs, err)
	}
	duplicates, err := e.duplicates()
	return append(findings, duplicates...), errors.Join(append(errs, err)...)
}

// repair runs the plan of one pool. It returns the slots as they are then.
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

// lookAgain returns the slots with those that have changed as they are now.
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

// confirm looks at the slot of a finding again with its lock held, since what
// was under way at the first look may have ended by now, and hands what is
// still wrong to fn.
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

// limitOf returns the limit of one subvolume, in bytes, 0 for none; false where
// the pool has no limits.
func (p *servedPool) limitOf(subvolume uint64) (int64, bool) {
	usage, err := p.Usage(subvolume)
	return usage.Limit, err == nil
}

// apply runs the repair, if there is one.
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

// unusable reports the directories that should be pools and are not.
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

// duplicates reports the IDs that more than one pool contains. Which is meant is
// for people to say.
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

// slotState is what a look at a slot shows.
type slotState int

const (
	slotReady      slotState = iota // record and subvolume, complete
	slotDeclared                    // a record, or nothing at all, and no subvolume yet
	slotHalf                        // subvolume there, record not marked ready
	slotLost                        // record marked ready, no subvolume
	slotDamaged                     // a record, and a subvolume that cannot be read
	slotForeign                     // something without a record
	slotUnreadable                  // a record that makes no sense
	slotRemoving                    // on its way out
)

// scanned is a slot, what it holds and what that means.
type scanned struct {
	located
	info  btrfs.SubvolumeInfo
	state slotState
	err   error
}

// scan reads every slot of the pool, ordered by path. Slots that vanish while it
// runs are left out.
func (p *servedPool) scan() ([]scanned, error) {
	var all []scanned
	for _, area := range pool.Areas {
		names, err := p.List(area)
		if err != nil {
			return nil, err
		}
		slices.Sort(names)
		for _, name := range names {
			s, err := p.look(pool.Slot{Area: area, Name: name})
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			all = append(all, s)
		}
	}
	return all, nil
}

// look classifies one slot.
func (p *servedPool) look(slot pool.Slot) (scanned, error) {
	s := scanned{located: located{pool: p, fs: p.Filesystem, slot: slot}}
	data, err := p.Record(slot)
	if err != nil {
		return s, err
	}
	info, err := p.Info(slot)
	there := err == nil
	if errors.Is(err, pool.ErrSilent) { // nobody knows what is there
		return s, err
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	s.info, s.err = info, pool.Cause(err)
	_, named := slot.Ref()
	switch {
	case !named, data == nil && err != nil:
		s.state = slotForeign
	case slot.Area == pool.AreaRemoving && data != nil:
		s.state = slotRemoving
	case data == nil && there:
		s.state = slotForeign
	case data == nil:
		err = s.classifyBare()
		return s, err
	default:
		s.classify(data, there)
	}
	return s, nil
}

// classifyBare distinguishes a slot without a record and a subvolume, as a crash leaves it,
// from what else is there.
func (s *scanned) classifyBare() error {
	names, err := s.fs.Beside(s.slot)
	s.state = slotDeclared
	if s.slot.Area == pool.AreaRemoving {
		s.state = slotRemoving
	}
	if len(names) > 0 || errors.Is(err, pool.ErrForeign) {
		s.state, err = slotForeign, nil
	}
	return err
}

// classify says what a slot with a record is.
func (s *scanned) classify(record []byte, there bool) {
	err := s.decode(record)
	switch {
	case err != nil:
		s.state, s.err = slotUnreadable, err
	case s.err != nil:
		s.state = slotDamaged
	case s.record.State == meta.Ready && there:
		s.state = slotReady
	case s.record.State == meta.Ready:
		s.state = slotLost
	case there:
		s.state = slotHalf
	default:
		s.state = slotDeclared
	}
}

// entries returns what the index should say of the pool, also of what cannot be read, as
// far as its record says; and what is there beside them, to which somebody has to see.
func (p *servedPool) entries(slots []scanned) (entries []meta.Entry, unlisted []meta.Ref) {
	for _, s := range slots {
		switch s.state {
		case slotReady, slotDamaged:
			entries = append(entries, entryOf(p, s.record, s.info))
		case slotHalf, slotUnreadable:
			if ref, named := s.slot.Ref(); named {
				unlisted = append(unlisted, ref)
			}
		}
	}
	return entries, unlisted
}

// plan compares the pool with its ledger. It returns what it has seen and what is to be done.
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

// judge returns all that is wrong with a slot. What would take the slot away is not
// repaired while something that is not ours lies in it.
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

// fault is one thing that is wrong with the slot, and what mends it.
func (s *scanned) fault(problem pool.Problem, detail, repair string, run func() error) action {
	return action{slot: s.slot, run: run, Finding: Finding{
		Pool: s.pool.Name, Path: s.slot.String(), Problem: problem, Detail: detail, Repair: repair}}
}

// judgeState says what is wrong with a slot by its state.
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

// judgeReady says what is wrong with a slot that is complete.
func (s *scanned) judgeReady(limit func(subvolume uint64) (int64, bool)) (all []action) {
	if s.record.Kind.ReadOnly() && !s.info.ReadOnly {
		all = append(all, s.fault(Writable, "was made writable; its content may have changed", "", nil))
	}
	if s.record.Kind != meta.Active {
		return all
	}
	if have, limited := limit(s.info.ID); limited && s.limitWrong(s.info.ID, have) {
		all = append(all, s.fault(WrongLimit, fmt.Sprintf("limit is %d bytes, size is %d", have, s.record.Size), "set",
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

// finish completes a slot. One that is no copy of all of its source is undone.
func (s *scanned) finish() error {
	_, err := s.resume()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// undeclare takes an empty slot away. Files in it are somebody's, and stay.
func (s *scanned) undeclare() error {
	err := s.fs.Rmdir(s.slot)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// planQuota looks at what belongs to no single slot.
func (p *servedPool) planQuota() ([]action, error) {
	var actions []action
	known := p.stale.all()
	stale, err := p.StaleQuota()
	if err != nil {
		return nil, err
	}
	stale = slices.DeleteFunc(stale, func(id uint64) bool { // maintain is at it, or was meanwhile
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
			Finding: Finding{Pool: p.Name, Problem: pool.QuotaInconsistent, Detail: "limits are void until it has been rescanned", Repair: "rescan"},
			run:     p.rescan,
		})
	}
	return actions, nil
}

// forgetAll removes stale accounting; what the kernel still needs is tried
// again by maintain.
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
