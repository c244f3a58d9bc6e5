package snapshot

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// OnChange sets fn, which is called for every volume and snapshot that was made, changed or
// removed. A zero Ref means that pools came or went and anything may have changed. fn must not
// block, and may be called concurrently. Call OnChange before the engine is used.
func (e *Engine) OnChange(fn func(meta.Ref)) { e.onChange = fn }

func (e *Engine) changed(ref meta.Ref) {
	if e.onChange != nil {
		e.onChange(ref)
	}
}

// repeatTrouble is the time after which a lasting error is logged again.
const repeatTrouble = time.Hour

// troubles are the errors that were logged, by message and pool.
type troubles struct {
	mu     sync.Mutex // protects logged
	logged map[[2]string]trouble
}

type trouble struct {
	text string
	at   time.Time
}

// news reports whether an error of a pool (or of none, "") has to be logged: it is new, or an
// hour has passed.
func (t *troubles) news(message, pool string, err error) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.logged == nil {
		t.logged = map[[2]string]trouble{}
	}
	before := t.logged[[2]string{message, pool}]
	if before.text == err.Error() && time.Since(before.at) < repeatTrouble {
		return false
	}
	t.logged[[2]string{message, pool}] = trouble{err.Error(), time.Now()}
	return true
}

// complain logs an error of a check that is repeated.
func (e *Engine) complain(ctx context.Context, message, pool string, err error) {
	if e.troubles.news(message, pool, err) {
		klog.FromContext(ctx).Error(err, message, "pool", pool)
	}
}

// answered is called when a pool has become silent, and when it answers again. It then completes
// unfinished operations, as at a start.
func (e *Engine) answered(ctx context.Context, p *servedPool) {
	if _, silence := p.Silence(); silence != nil {
		klog.FromContext(ctx).Error(silence, "Pool does not answer", "pool", p.Name)
		e.changed(meta.Ref{})
		return
	}
	klog.FromContext(ctx).Info("Pool answers again", "pool", p.Name)
	p.returned.Store(true)
	e.changed(meta.Ref{})
	if e.index != nil && ctx.Err() == nil && slices.Contains(e.allPools(), p) {
		e.tend(ctx, p)
	}
}

// Answering fails if no pool of this node answers and at least one is silent.
func (e *Engine) Answering() error {
	var silent []error
	for _, p := range e.allPools() {
		_, silence := p.Silence()
		if silence == nil {
			return nil
		}
		silent = append(silent, silence)
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, reason := range e.broken {
		if errors.Is(reason, pool.ErrSilent) {
			silent = append(silent, reason)
		}
	}
	return errors.Join(silent...)
}

// conditionFindings returns the conditions of a pool as findings without a repair. Quota and
// pools that cannot be used have findings of their own.
func (p *servedPool) conditionFindings() []Finding {
	var findings []Finding
	for _, c := range p.status().Conditions() {
		if c.Problem != pool.Unusable && c.Problem != pool.Silent && c.Problem != pool.QuotaInconsistent {
			findings = append(findings, Finding{Pool: p.Name, Problem: c.Problem, Detail: c.Message})
		}
	}
	return findings
}

// logProblems is logNews, unless maintenance is running, which ends with logNews.
func (p *servedPool) logProblems(ctx context.Context) {
	if p.tending.TryLock() {
		defer p.tending.Unlock()
		p.logNews(ctx)
	}
}

// logNews logs the problems of a pool that began or ended since the last call.
func (p *servedPool) logNews(ctx context.Context) {
	logger := klog.FromContext(ctx).WithValues("pool", p.Name)
	status := p.status()
	if status.Silent {
		return // which is logged already
	}
	if note := status.Note(); note != p.note {
		logger.Info(cmp.Or(note, "The filesystem of the pool's file has room for all of it again"))
		p.note = note
	}
	var now []pool.Problem
	for _, c := range status.Conditions() {
		now = append(now, c.Problem)
		if !slices.Contains(p.problems, c.Problem) {
			logger.Error(nil, "Pool has a problem", "problem", c.Problem, "detail", c.Message)
		}
	}
	for _, problem := range p.problems {
		if !slices.Contains(now, problem) {
			logger.Info("Pool has a problem no longer", "problem", problem)
		}
	}
	p.problems = now
}
