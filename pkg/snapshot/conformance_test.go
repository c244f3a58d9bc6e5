package snapshot_test

import (
	"testing"

	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot/snaptest"
)

func TestMemory(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			snaptest.Run(t, func(testing.TB) snaptest.Env { return snaptest.NewEnv(mode) })
		})
	}
}
