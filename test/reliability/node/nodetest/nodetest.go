package nodetest

import (
	"context"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/test/reliability/node"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// Number returns the number in an environment variable, or standard if that is not set.
func Number(t *testing.T, variable string, standard int) int {
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

// source is the directory of the driver's module, relative to that of a test.
const source = "../../.."

var (
	driverOnce    = sync.OnceValues(func() (string, error) { return build("btrfs-csi", testkit.Build) })
	disturbedOnce = sync.OnceValues(func() (string, error) { return build("disturbed", node.BuildDisturbed) })
)

// Driver returns the driver that RELIABILITY_BINARY names, or else builds one, once.
func Driver(t *testing.T) string {
	if binary := os.Getenv("RELIABILITY_BINARY"); binary != "" {
		return binary
	}
	binary, err := driverOnce()
	No(t, err)
	return binary
}

// Disturbed builds a disturbed driver, once. It returns "" where RELIABILITY_BINARY names the
// driver, since no driver of that version can be built.
func Disturbed(t *testing.T) string {
	if os.Getenv("RELIABILITY_BINARY") != "" {
		return ""
	}
	binary, err := disturbedOnce()
	No(t, err)
	return binary
}

// build builds a driver into the tests' temporary directory, with the race detector if the test has it.
func build(name string, build func(ctx context.Context, source, binary string, flags ...string) error) (string, error) {
	dir, err := os.MkdirTemp("", "btrfs-csi-")
	if err != nil {
		return "", err
	}
	var flags []string
	if raceDetector() {
		flags = append(flags, "-race")
	}
	binary := filepath.Join(dir, name)
	return binary, build(context.Background(), source, binary, flags...)
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

// No ends a test that has an error.
func No(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
