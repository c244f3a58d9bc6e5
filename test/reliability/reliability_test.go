package reliability

import (
	"os"
	"testing"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/disk"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/writelog"
)

// TestKilledDriver: RELIABILITY_KILLS is how often.
func TestKilledDriver(t *testing.T) {
	run(t, Options{Kills: number(t, "RELIABILITY_KILLS", 25)})
}

// TestPowerCut: RELIABILITY_CUTS is how often.
func TestPowerCut(t *testing.T) {
	run(t, Options{Cuts: number(t, "RELIABILITY_CUTS", 20)})
}

// TestLoadAlone: nothing happens to the driver.
func TestLoadAlone(t *testing.T) {
	run(t, Options{Duration: 3 * time.Second})
}

// run runs, with RELIABILITY_SEED for one that has failed before.
func run(t *testing.T, o Options) {
	btrfstest.RequireRoot(t)
	o.Binary, o.Dir, o.Log = builtDriver(t), t.TempDir(), t.Logf
	if o.Kills+o.Cuts > 0 {
		o.Disturbed = builtDisturbed(t)
	}
	o.Seed = uint64(number(t, "RELIABILITY_SEED", 0))
	report, err := Run(t.Context(), o)
	t.Log(report)
	if err != nil {
		t.Fatal(err)
	}
}

func TestMain(m *testing.M) {
	disk.Main()
	writelog.Main()
	os.Exit(btrfstest.Main(m.Run))
}
