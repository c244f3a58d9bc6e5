package slot

import (
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// Status is pool.Pool.Status with the counters of the operations.
func (p *Pool) Status() pool.Status {
	s := p.Pool.Status()
	if !s.Silent {
		s.Rescans, s.Nesting = p.rescans.Load(), p.nested.volumes()
	}
	return s
}

// ConditionFindings returns the conditions of a pool as findings without a repair. Quota and pools
// that cannot be used have findings of their own.
func (p *Pool) ConditionFindings() []Finding {
	var findings []Finding
	for _, c := range p.Status().Conditions() {
		if c.Problem != pool.Unusable && c.Problem != pool.Silent && c.Problem != pool.QuotaInconsistent {
			findings = append(findings, Finding{Pool: p.Name, Problem: c.Problem, Detail: c.Message})
		}
	}
	return findings
}
