package soak

import (
	"os"
	"testing"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/node/nodetest"
)

// TestKilledDriver kills drivers RELIABILITY_KILLS times.
func TestKilledDriver(t *testing.T) {
	run(t, partOptions{Kills: nodetest.Number(t, "RELIABILITY_KILLS", 25)})
}

// TestPowerCut cuts the power RELIABILITY_CUTS times.
func TestPowerCut(t *testing.T) {
	run(t, partOptions{Cuts: nodetest.Number(t, "RELIABILITY_CUTS", 20)})
}

// TestLoadAlone checks a driver under load that nothing happens to.
func TestLoadAlone(t *testing.T) {
	run(t, partOptions{Duration: 3 * time.Second})
}

// run runs a part, with the seed in RELIABILITY_SEED.
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
