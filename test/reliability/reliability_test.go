package reliability

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/disk"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/writelog"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
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
	binary, disturbed, err := build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o.Binary, o.Dir, o.Log = binary, t.TempDir(), t.Logf
	if o.Kills+o.Cuts > 0 {
		o.Disturbed = disturbed
	}
	o.Seed = uint64(number(t, "RELIABILITY_SEED", 0))
	report, err := Run(t.Context(), o)
	t.Log(report)
	if err != nil {
		t.Fatal(err)
	}
}

func number(t *testing.T, variable string, standard int) int {
	text := os.Getenv(variable)
	if text == "" {
		return standard
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

// built are the drivers, in a directory that goes with the tests' temporary files.
var built struct {
	dir string
	sync.Once
	err error
}

func TestMain(m *testing.M) {
	disk.Main()
	writelog.Main()
	os.Exit(btrfstest.Main(m.Run))
}

// build builds the driver, and the one that is disturbed, once, with the race detector if
// the test has it. Another driver is named by RELIABILITY_BINARY, and is not disturbed.
func build(ctx context.Context) (binary, disturbed string, err error) {
	if binary := os.Getenv("RELIABILITY_BINARY"); binary != "" {
		return binary, "", nil
	}
	built.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "btrfs-csi-"); built.err != nil {
			return
		}
		var flags []string
		if raceDetector() {
			flags = append(flags, "-race")
		}
		built.err = errors.Join(testkit.Build(ctx, "../..", filepath.Join(built.dir, "btrfs-csi"), flags...), BuildDisturbed(ctx, "../..", filepath.Join(built.dir, "disturbed"), flags...))
	})
	return filepath.Join(built.dir, "btrfs-csi"), filepath.Join(built.dir, "disturbed"), built.err
}

func raceDetector() bool {
	info, _ := debug.ReadBuildInfo()
	for _, s := range info.Settings {
		if s.Key == "-race" {
			return s.Value == "true"
		}
	}
	return false
}
