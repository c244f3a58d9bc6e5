package mount

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// tableFile is the mount table of this process. Poll reports its changes.
const tableFile = "/proc/self/mountinfo"

// Watch reports changes of the mount table. Only one goroutine may use it at a time.
type Watch struct{ file *os.File }

// NewWatch returns a Watch for changes after this call.
func NewWatch() (*Watch, error) {
	// With os.Open, Go's own poller would consume some of the reports.
	fd, err := unix.Open(tableFile, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: tableFile, Err: err}
	}
	return &Watch{os.NewFile(uintptr(fd), tableFile)}, nil
}

// Changed waits up to within for a change, and reports whether there was one since the last
// call. It never waits longer.
func (w *Watch) Changed(within time.Duration) (bool, error) {
	end := time.Now().Add(within)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(w.file.Fd()), Events: unix.POLLPRI}}, int(max(0, time.Until(end)).Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return n > 0, err
		}
	}
}

// Close closes the watch.
func (w *Watch) Close() error { return w.file.Close() }
