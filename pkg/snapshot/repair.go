package snapshot

import (
	"context"

	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/slot"
)

// repair runs the plan of one pool. It returns the slots as they are afterwards.
func (e *Engine) repair(ctx context.Context, s *slot.Session) (findings []Finding, slots []*slot.Slot, err error) {
	slots, actions, err := s.Plan()
	if err != nil {
		return nil, nil, err
	}
	changed := map[pool.Slot]bool{}
	for _, a := range actions {
		if err := ctx.Err(); err != nil {
			return findings, nil, err
		}
		e.confirm(s, a, func(a slot.Action) {
			findings = append(findings, a.Apply())
			changed[a.At] = changed[a.At] || a.Repairs()
		})
	}
	if len(changed) > 0 {
		slots, err = lookAgain(s, slots, changed)
	}
	return findings, slots, err
}

// lookAgain returns the slots, with the current state of those that have changed.
func lookAgain(s *slot.Session, slots []*slot.Slot, changed map[pool.Slot]bool) ([]*slot.Slot, error) {
	now := slots[:0]
	for _, l := range slots {
		if !changed[l.At] {
			now = append(now, l)
			continue
		}
		found, err := s.Look(l.At)
		if err != nil {
			return nil, err
		}
		now = append(now, found...)
	}
	return now, nil
}

// confirm looks at the slot of a finding again under its lock, because an operation may have
// ended since the first look. It calls fn for each fault that remains.
func (e *Engine) confirm(s *slot.Session, a slot.Action, fn func(slot.Action)) {
	if a.At == (pool.Slot{}) {
		fn(a)
		return
	}
	ref, _ := a.At.Ref()
	release, ok := e.locks.TryAcquire(ref)
	if !ok {
		return
	}
	defer release()
	found, _ := s.Look(a.At) // nothing if it is gone
	for _, l := range found {
		for _, again := range l.Faults() {
			fn(again)
		}
	}
}

func logFindings(ctx context.Context, findings []Finding) {
	for _, f := range findings {
		klog.FromContext(ctx).Info("Reconciled", "pool", f.Pool, "path", f.Path, "problem", f.Problem,
			"detail", f.Detail, "repair", f.Repair, "repaired", f.Repaired, "error", f.Error)
	}
}
