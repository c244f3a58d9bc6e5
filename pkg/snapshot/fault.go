package snapshot

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/klog/v2"
)

const (
	// ReadOnly is a pool that cannot be written: somebody has mounted it so, or the
	// kernel has stopped it after an error.
	ReadOnly Problem = "ReadOnly"
	// DeviceMissing is a pool that lacks a device.
	DeviceMissing Problem = "DeviceMissing"
	// BackingFull is a pool in a sparse file whose own filesystem is nearly full. When it is
	// full the kernel stops the pool.
	BackingFull Problem = "BackingFull"
	// DeviceErrors is a pool whose devices have had errors.
	DeviceErrors Problem = "DeviceErrors"
)

// Fault is something wrong with a pool as a whole.
type Fault struct {
	Problem Problem
	Detail  string // what was found, and what to do. It holds no number that changes all the time
}

// Faults returns what is wrong with a pool, the worst first, each Problem once.
func (s PoolStatus) Faults() []Fault {
	var faults []Fault
	add := func(wrong bool, problem Problem, format string, args ...any) {
		if wrong {
			faults = append(faults, Fault{problem, fmt.Sprintf(format, args...)})
		}
	}
	missing, failing := s.missingDevices(), s.failingDevices()
	add(s.Error != "", Unusable, "%s", s.Error)
	add(s.Space.ReadOnly, ReadOnly, "%s", s.whyReadOnly(failing))
	add(missing != "", DeviceMissing, "devices are missing: %s: replace them", missing)
	add(backingFull(s.Space.Room), BackingFull, "%s", s.backingDetail())
	add(s.Quota.Inconsistent, QuotaInconsistent, "limits of volumes are void until the quota has been rescanned, which the driver does")
	add(failing != "", DeviceErrors, "devices had errors: %s: check them, then reset the counters with btrfs device stats --reset", failing)
	return faults
}

// Note returns what should be known of a pool with no fault; empty for nothing.
func (s PoolStatus) Note() string {
	if b := s.Space.Backing; b != nil {
		return fmt.Sprintf("the file %s has %d bytes, and its filesystem has not the room for all of them: free space there; the capacity of the pool is what is left there",
			b.Path, b.Size)
	}
	return ""
}

// whyReadOnly distinguishes a filesystem that the kernel has stopped from one that somebody
// has mounted read-only. The kernel says why it did so in its log only; what is known beside
// that is named.
func (s PoolStatus) whyReadOnly(failing string) string {
	if !s.Space.Stopped {
		return "the filesystem is mounted read-only: remount it read-write"
	}
	why := stoppedByKernel
	if failing != "" {
		why += "; devices had errors: " + failing
	}
	if b := s.Space.Backing; b != nil {
		why += fmt.Sprintf("; the filesystem of the file %s has no room for all of it: free space there first", b.Path)
	}
	return why
}

const stoppedByKernel = "the kernel has stopped the filesystem after an error, which its log names: when the cause is mended, " +
	"unmount the filesystem everywhere and mount it again, or restart the node"

func (s PoolStatus) backingDetail() string {
	if s.Space.Backing == nil {
		return ""
	}
	return fmt.Sprintf("the filesystem of the file %s, which the pool lies in, has less than %d bytes left: free space there, "+
		"before the kernel finds none and stops the pool", s.Space.Backing.Path, backingHeadroom(s.Space.Room))
}

func (s PoolStatus) missingDevices() string {
	var missing []string
	for _, d := range s.Devices {
		if d.Missing {
			missing = append(missing, fmt.Sprint(d.ID))
		}
	}
	return strings.Join(missing, ", ")
}

func (s PoolStatus) failingDevices() string {
	var failing []string
	for _, d := range s.Devices {
		if d.Errors() > 0 {
			failing = append(failing, fmt.Sprintf("%s (write %d, read %d, flush %d, corruption %d, generation %d)",
				d.Path, d.WriteErrors, d.ReadErrors, d.FlushErrors, d.CorruptionErrors, d.GenerationErrors))
		}
	}
	return strings.Join(failing, ", ")
}

// faultFindings makes findings of the faults, which are for people to mend. Quota and what
// cannot be read have findings of their own.
func (p *pool) faultFindings() []Finding {
	var findings []Finding
	for _, f := range p.status().Faults() {
		if f.Problem != Unusable && f.Problem != QuotaInconsistent {
			findings = append(findings, Finding{Pool: p.name, Problem: f.Problem, Detail: f.Detail})
		}
	}
	return findings
}

// logFaults is logNews, unless the pool is being maintained, which ends with it.
func (p *pool) logFaults(ctx context.Context) {
	if p.tending.TryLock() {
		defer p.tending.Unlock()
		p.logNews(ctx)
	}
}

// logNews logs what has become wrong with a pool, or is no longer, since the last call.
func (p *pool) logNews(ctx context.Context) {
	logger := klog.FromContext(ctx).WithValues("pool", p.name)
	status := p.status()
	if status.Silent {
		return // which is said already
	}
	if note := status.Note(); note != p.note {
		logger.Info(cmp.Or(note, "The filesystem of the pool's file has room for all of it again"))
		p.note = note
	}
	var now []Problem
	for _, f := range status.Faults() {
		now = append(now, f.Problem)
		if !slices.Contains(p.faults, f.Problem) {
			logger.Error(nil, "Pool has a fault", "problem", f.Problem, "detail", f.Detail)
		}
	}
	for _, problem := range p.faults {
		if !slices.Contains(now, problem) {
			logger.Info("Pool has a fault no longer", "problem", problem)
		}
	}
	p.faults = now
}
