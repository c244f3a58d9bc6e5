package snapshot

import (
	"cmp"
	"context"
	"slices"

	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

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
	status := p.Status()
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
