package btrfstest

import (
	"testing"

	"github.com/btrfs-csi/btrfs-csi/internal/kernel"
)

// Fact is something that the kernel does from one version on.
type Fact struct {
	what         string
	major, minor int
}

// The facts that tests need. Those with 6.12 were seen there and not on 6.1.
var (
	CommitStats       = Fact{"sysfs counts commits", 6, 0}
	CreateWithoutSync = Fact{"the creation of a subvolume does not commit", 6, 6}
	SnapshotsShare    = Fact{"snapshots share commits", 6, 6}
	SimpleQuota       = Fact{"simple quota", 6, 7}
	CopyBeside        = Fact{"an exact copy mounts beside its original", 6, 7}
	QgroupGoes        = Fact{"full quota removes the qgroup of a destroyed subvolume", 6, 12}
	GroupIsVoid       = Fact{"a snapshot of a subvolume in a qgroup of level 1 makes full quota inconsistent", 6, 12}
)

// Holds reports whether the running kernel does it.
func (f Fact) Holds() bool { return kernel.AtLeast(f.major, f.minor) }

// Need skips the test on a kernel that does not do it.
func (f Fact) Need(t testing.TB) {
	t.Helper()
	if !f.Holds() {
		t.Skipf("needs Linux %d.%d, found %s: %s", f.major, f.minor, kernel.Release(), f.what)
	}
}
