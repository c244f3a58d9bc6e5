package mount

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// tableFile shows the mount table of this process, and its changes.
const tableFile = "/proc/self/mountinfo"

// Watch reports changes of the mount table. It is for one goroutine at a time.
type Watch struct{ file *os.File }

// NewWatch returns a Watch that reports changes from now on.
func NewWatch() (*Watch, error) {
	// Not os.Open, by which Go's own poller would take the report now and then.
	fd, err := unix.Open(tableFile, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: tableFile, Err: err}
	}
	return &Watch{os.NewFile(uintptr(fd), tableFile)}, nil
}

// Changed waits for a change since it was last reported. It returns false when there is
// none within the time. Nothing but that time makes it wait.
func (w *Watch) Changed(within time.Duration) (bool, error) {
	end := time.Now().Add(within)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(w.file.Fd()), Events: unix.POLLPRI}}, int(max(0, time.Until(end)).Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return n > 0, err
		}
	}
}

// Close ends the reports.
func (w *Watch) Close() error { return w.file.Close() }
