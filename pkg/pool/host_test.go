package pool_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// TestWaitMissesNothing: a change of the mounts before or during Wait ends it.
func TestWaitMissesNothing(t *testing.T) {
	btrfstest.RequireRoot(t)
	host, err := pool.NewHost(t.TempDir(), btrfs.QuotaNone)
	must(t, err)
	pool.PollNever(host)
	at := t.TempDir()
	for i := range 200 {
		time.Sleep(time.Duration(i%7) * time.Millisecond)
		must(t, errors.Join(unix.Mount("none", at, "tmpfs", 0, ""), btrfstest.Unmount(at)))
		btrfstest.Returns(t, fmt.Sprintf("Wait after change %d", i), func() { host.Wait(t.Context()) })
	}
}
