package main

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// silenceVariable is a variable with the path of a file. While the file exists, no record of
// any pool can be read, and no error is returned.
const silenceVariable = "BTRFS_CSI_TEST_SILENCE"

func becomeSilent() {
	file := os.Getenv(silenceVariable)
	if file == "" {
		return
	}
	wrapHost = func(h pool.Host) pool.Host {
		return pooltest.Wrap(h, func(_ string, d pool.Directory) pool.Directory { return silentPool{d, file} })
	}
}

type silentPool struct {
	pool.Directory
	file string
}

func (p silentPool) Find(slots ...pool.Slot) ([]pool.Contents, error) {
	for {
		if _, err := os.Stat(p.file); err != nil {
			return p.Directory.Find(slots...)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestReadyWhileSilent: /readyz and Probe fail while the only pool does not answer, and no
// longer. The process stays alive: a restart would not help.
func TestReadyWhileSilent(t *testing.T) {
	file, address := filepath.Join(t.TempDir(), "silent"), freeAddress(t)
	t.Setenv(silenceVariable, file)
	d := startDriver(t, btrfstest.Mount(t), "--pool-timeout=500ms", "--http="+address)
	create := &csi.CreateVolumeRequest{Name: "pvc", VolumeCapabilities: []*csi.VolumeCapability{testkit.Writer}}
	btrfstest.Eventually(t, "a volume", func() bool { // a slow machine may be taken for a silent disk
		_, err := d.CreateVolume(t.Context(), create)
		return err == nil
	})
	is := func(ready bool) func() bool {
		return func() bool {
			want := map[bool]int{true: http.StatusOK, false: http.StatusServiceUnavailable}[ready]
			probe, err := d.Probe(t.Context(), &csi.ProbeRequest{})
			return err == nil && probe.GetReady().GetValue() == ready && codeOf(t, address, "/readyz") == want &&
				codeOf(t, address, "/healthz") == http.StatusOK
		}
	}
	btrfstest.Eventually(t, "the driver is ready", is(true))
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := d.ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: "pvc"})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
	btrfstest.Eventually(t, "the driver is not ready", is(false))
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	btrfstest.Eventually(t, "the driver is ready again", is(true))
}

// codeOf returns the status code of a GET.
func codeOf(t *testing.T, address, path string) int {
	t.Helper()
	response, err := http.Get("http://" + address + path)
	if err != nil {
		return 0
	}
	defer response.Body.Close()
	return response.StatusCode
}
