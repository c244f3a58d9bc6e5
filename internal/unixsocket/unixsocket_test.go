package unixsocket

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPathTooLong(t *testing.T) {
	dir := t.TempDir()
	long := filepath.Join(dir, strings.Repeat("d", LongestPath-len(dir)-len("/.csi.sock")))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := Listen(filepath.Join(long, "csi.sock"), 0)
	if err == nil || !strings.Contains(err.Error(), "at most 107 bytes") {
		t.Errorf("want an error that says how long it may be, got %v", err)
	}
	_, err = net.Listen("unix", filepath.Join(long, ".csi.sock")) // the error that the check prevents
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("want EINVAL of the kernel, got %v", err)
	}
	listener, err := Listen(filepath.Join(long, "cs.sock"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(long); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
