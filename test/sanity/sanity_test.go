package sanity

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/driver"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// poolSize is the size of a sparse file. The suite creates several volumes of 10 GiB at a time, and
// no volume can be larger than the free space of its pool.
const poolSize = 40 << 30

func TestMain(m *testing.M) { os.Exit(btrfstest.Main(m.Run)) }

func TestSanity(t *testing.T) {
	engine := openEngine(t, btrfstest.Mount(t, btrfstest.Size(poolSize)))
	dir := t.TempDir()
	kubelet := filepath.Join(dir, "kubelet")
	if err := os.Mkdir(kubelet, 0o750); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "csi.sock")
	serve(t, engine, kubelet, socket)

	config := sanity.NewTestConfig()
	config.Address = "unix://" + socket
	config.TargetPath = filepath.Join(kubelet, "target")
	config.StagingPath = filepath.Join(kubelet, "staging")
	sanity.Test(t, config)
}

func openEngine(t *testing.T, state string) *snapshot.Engine {
	host, err := pool.NewHost(state, pool.QuotaAuto)
	if err != nil {
		t.Fatal(err)
	}
	index, _, err := index.Open(filepath.Join(t.TempDir(), "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	engine, err := snapshot.Open(context.Background(), host, index)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = engine.Close() })
	return engine
}

func serve(t *testing.T, engine *snapshot.Engine, kubelet, socket string) {
	d, err := driver.New(engine, driver.Options{NodeID: "sanity", Version: "sanity", KubeletDir: kubelet})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Serve(ctx, "unix://"+socket) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	btrfstest.Eventually(t, "socket", func() bool {
		_, err := os.Lstat(socket)
		return err == nil
	})
}
