package soak

import (
	"os"
	"testing"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/node/nodetest"
)

// TestKilledDriver: RELIABILITY_KILLS is how often.
func TestKilledDriver(t *testing.T) {
	run(t, partOptions{Kills: nodetest.Number(t, "RELIABILITY_KILLS", 25)})
}

// TestPowerCut: RELIABILITY_CUTS is how often.
func TestPowerCut(t *testing.T) {
	run(t, partOptions{Cuts: nodetest.Number(t, "RELIABILITY_CUTS", 20)})
}

// TestLoadAlone: nothing happens to the driver.
func TestLoadAlone(t *testing.T) {
	run(t, partOptions{Duration: 3 * time.Second})
}

// run runs, with RELIABILITY_SEED for one that has failed before.
func run(t *testing.T, o partOptions) {
	btrfstest.RequireRoot(t)
	o.Binary, o.Dir, o.Log = nodetest.Driver(t), t.TempDir(), t.Logf
	if o.Kills+o.Cuts > 0 {
		o.Disturbed = nodetest.Disturbed(t)
	}
	o.Seed = uint64(nodetest.Number(t, "RELIABILITY_SEED", 0))
	report, err := runPart(t.Context(), o)
	t.Log(report)
	if err != nil {
		t.Fatal(err)
	}
}

func TestMain(m *testing.M) {
	os.Exit(btrfstest.Main(m.Run))
}
