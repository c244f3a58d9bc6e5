package pool_test

import (
	"os"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
)

func TestMain(m *testing.M) { os.Exit(btrfstest.Main(m.Run)) }
