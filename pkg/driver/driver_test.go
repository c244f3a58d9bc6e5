package driver

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/go-logr/logr/funcr"
	"google.golang.org/grpc/codes"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// stubEngine implements only Stat, by a function of the test.
type stubEngine struct {
	Engine
	stat func() (meta.Entry, error)
}

func (e *stubEngine) Stat(context.Context, meta.Ref) (meta.Entry, error) { return e.stat() }

// stubDriver returns a driver that needs neither root nor btrfs.
func stubDriver(t *testing.T, stat func() (meta.Entry, error), o Options) *Driver {
	t.Helper()
	o.NodeID, o.Version, o.KubeletDir = "node-1", "v1", t.TempDir()
	d, err := New(&stubEngine{stat: stat}, o)
	must(t, err)
	return d
}

func getVolume(t *testing.T, socket string) error {
	_, err := csi.NewControllerClient(dial(t, socket)).ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: "v"})
	return err
}

func found() (meta.Entry, error) { return meta.Entry{}, nil }

func TestSocketIsForRootAloneAndGoesAtStop(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "csi.sock")
	stop := serve(t, stubDriver(t, found, Options{}), "unix://"+socket)
	info, err := os.Lstat(socket)
	must(t, err)
	if info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("want a socket of mode 0600, got %v", info.Mode())
	}
	must(t, getVolume(t, socket))
	entries, _ := os.ReadDir(filepath.Dir(socket))
	if len(entries) != 1 {
		t.Errorf("want the socket alone in its directory, got %v", entries)
	}
	stop()
	wantGone(t, socket)
}

func TestServeAgain(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "csi.sock")
	d := stubDriver(t, found, Options{})
	serve(t, d, socket)()
	stop := serve(t, d, socket)
	defer stop()
	must(t, getVolume(t, socket))
}

func TestStaleSocketIsReplaced(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "csi.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	must(t, err)
	listener.SetUnlinkOnClose(false)
	must(t, listener.Close())
	d := stubDriver(t, found, Options{})
	stop := serve(t, d, socket)
	defer stop()
	waitFor(t, "answer", func() bool { return getVolume(t, socket) == nil })
}

func TestServedSocketIsLeftAlone(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "csi.sock")
	stop := serve(t, stubDriver(t, found, Options{}), socket)
	defer stop()
	if err := stubDriver(t, found, Options{}).Serve(t.Context(), socket); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("want an error that names another process, got %v", err)
	}
	must(t, getVolume(t, socket))
}

func TestFileInPlaceOfTheSocketIsKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "csi.sock")
	write(t, file, "precious")
	if err := stubDriver(t, found, Options{}).Serve(t.Context(), file); err == nil {
		t.Error("want an error")
	}
	wantFile(t, file, "precious")
}

func TestSuccessorsSocketIsNotRemoved(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "csi.sock")
	stop := serve(t, stubDriver(t, found, Options{}), socket)
	must(t, os.Remove(socket))
	defer serve(t, stubDriver(t, found, Options{}), socket)()
	stop()
	must(t, getVolume(t, socket))
}

func TestEndpoints(t *testing.T) {
	for endpoint, want := range map[string]string{
		"unix:///run/csi.sock": "/run/csi.sock", "/run/csi.sock": "/run/csi.sock",
		"unix://csi.sock": "", "tcp://127.0.0.1:1": "", "": "", "csi.sock": "",
	} {
		got, err := socketPath(endpoint)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: want %q, got %q, %v", endpoint, want, got, err)
		}
	}
}

func TestStopLetsRequestsEnd(t *testing.T) {
	for name, test := range map[string]struct {
		grace time.Duration
		code  codes.Code
	}{
		"in time":  {btrfstest.Patience, codes.OK},
		"too late": {10 * time.Millisecond, codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			entered, leave := make(chan struct{}), make(chan struct{})
			d := stubDriver(t, func() (meta.Entry, error) { close(entered); <-leave; return found() }, Options{GracePeriod: test.grace})
			socket := filepath.Join(t.TempDir(), "csi.sock")
			stop := serve(t, d, socket)
			answered := make(chan error, 1)
			go func() { answered <- getVolume(t, socket) }()
			<-entered
			stopped := make(chan struct{})
			go func() { defer close(stopped); stop() }()
			if test.code == codes.OK {
				waitFor(t, "end of the listener", func() bool { return !isServed(socket) })
				close(leave)
			}
			<-stopped
			wantCode(t, <-answered, test.code)
			if test.code != codes.OK {
				close(leave)
			}
		})
	}
}

// isServed reports whether a process listens on a socket.
func isServed(socket string) bool {
	connection, err := net.Dial("unix", socket)
	if err != nil {
		return false
	}
	_ = connection.Close()
	return true
}

func TestPanicFailsOneRequest(t *testing.T) {
	var logged logs
	socket := filepath.Join(t.TempDir(), "csi.sock")
	calls := 0
	d := stubDriver(t, func() (meta.Entry, error) {
		if calls++; calls == 1 {
			panic("ouch")
		}
		return found()
	}, Options{})
	ctx, cancel := context.WithCancel(klog.NewContext(context.Background(), logged.logger()))
	ended := make(chan error, 1)
	go func() { ended <- d.Serve(ctx, socket) }()
	waitFor(t, "socket", func() bool { _, err := os.Lstat(socket); return err == nil })
	wantCode(t, getVolume(t, socket), codes.Internal, "ouch")
	must(t, getVolume(t, socket))
	cancel()
	must(t, <-ended)
	if text := logged.String(); !strings.Contains(text, "stubEngine") || !strings.Contains(text, "goroutine") {
		t.Errorf("want a stack in the log, got %s", text)
	}
}

// logs collects log messages.
type logs struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logs) logger() klog.Logger {
	return funcr.New(func(prefix, args string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.text.WriteString(prefix + args + "\n")
	}, funcr.Options{Verbosity: 5})
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func TestRequestsAreLoggedWithoutSecretsAndObserved(t *testing.T) {
	var logged logs
	type observed struct {
		method string
		code   codes.Code
	}
	seen := make(chan observed, 1)
	d := stubDriver(t, func() (meta.Entry, error) { return meta.Entry{}, snapshot.ErrNotFound }, Options{
		Observe: func(method string, code codes.Code, _ time.Duration) { seen <- observed{method, code} },
	})
	ctx, cancel := context.WithCancel(klog.NewContext(context.Background(), logged.logger()))
	ended := make(chan error, 1)
	socket := filepath.Join(t.TempDir(), "csi.sock")
	go func() { ended <- d.Serve(ctx, socket) }()
	waitFor(t, "socket", func() bool { _, err := os.Lstat(socket); return err == nil })
	_, err := csi.NewControllerClient(dial(t, socket)).GetSnapshot(t.Context(), &csi.GetSnapshotRequest{
		SnapshotId: "snapshot-1", Secrets: map[string]string{"password": "hunter2"},
	})
	wantCode(t, err, codes.NotFound)
	cancel()
	must(t, <-ended)
	if got := <-seen; got != (observed{"GetSnapshot", codes.NotFound}) {
		t.Errorf("observed %v", got)
	}
	text := logged.String()
	if strings.Contains(text, "hunter2") || !strings.Contains(text, "snapshot-1") {
		t.Errorf("want the request without secrets in the log, got %s", text)
	}
	if n := strings.Count(text, "RPC failed"); n != 1 {
		t.Errorf("want the failure once in the log, got %d times: %s", n, text)
	}
	if !strings.Contains(text, `"requestID"=1`) {
		t.Errorf("want a request number in the log, got %s", text)
	}
}

func TestNewWantsItsOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"no node":          {Version: "v1", KubeletDir: "/"},
		"no version":       {NodeID: "n", KubeletDir: "/"},
		"relative kubelet": {NodeID: "n", Version: "v1", KubeletDir: "kubelet"},
	} {
		if _, err := New(&stubEngine{}, o); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
}

// A client other than a kubelet may have no kubelet directory.
func TestAbsentKubeletDirServes(t *testing.T) {
	if _, err := New(&stubEngine{}, Options{NodeID: "n", Version: "v1", KubeletDir: filepath.Join(t.TempDir(), "absent")}); err != nil {
		t.Error(err)
	}
}

func TestProbeTellsReadiness(t *testing.T) {
	ready := false
	d := stubDriver(t, found, Options{Ready: func() bool { return ready }})
	service := &identity{Driver: d}
	for _, want := range []bool{false, true} {
		ready = want
		response, err := service.Probe(t.Context(), &csi.ProbeRequest{})
		if err != nil || response.GetReady().GetValue() != want {
			t.Errorf("want ready %v, got %v, %v", want, response, err)
		}
	}
}
