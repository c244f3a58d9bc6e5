// Package unixsocket listens on unix sockets that nobody but their owner reaches.
package unixsocket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// LongestPath is the longest path of a socket in bytes (unix(7)), with the dot that its name
// begins with while the socket is made.
const LongestPath = len(unix.RawSockaddrUnix{}.Path) - 1 // a NUL ends it

// dialTimeout is how long the process behind an existing socket may take to accept.
const dialTimeout = time.Second

// Listener listens on a socket, and knows its file.
type Listener struct {
	net.Listener
	path string
	file fs.FileInfo
}

// Listen makes a socket with mode 0600 that belongs to the user owner. A socket that nobody
// listens on is replaced. Errors: the path is too long, its directory cannot be written,
// something else is there, or another process listens on it.
//
// The socket has its mode from the moment it is bound, without a umask, which is
// process-wide. It gets its owner under another name, which begins with a dot, so that
// nobody ever sees another owner. That name is always the same: a start that is killed
// leaves one such file at most. The name takes no block on the disk, as a directory would:
// a driver has to start when the disk is full.
func Listen(path string, owner int) (*Listener, error) {
	born := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)) // a kubelet leaves what begins with a dot alone
	if len(born) > LongestPath {
		return nil, fmt.Errorf("the path of a socket has at most %d bytes, with a dot before its name, found %d: choose a shorter directory", LongestPath, len(born))
	}
	if err := checkStale(path); err != nil {
		return nil, err
	}
	if err := os.Remove(born); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }), err)
	}}
	listener, err := config.Listen(context.Background(), "unix", born)
	if err != nil {
		return nil, fmt.Errorf("the directory must exist and be writable: %w", err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false) // it would unlink the name it was born with
	file, err := settle(born, path, owner)
	if err != nil {
		return nil, errors.Join(err, listener.Close(), os.Remove(born))
	}
	return &Listener{listener, path, file}, nil
}

// Close stops listening and removes the socket's file, unless a successor has replaced it.
func (l *Listener) Close() error {
	_ = l.Listener.Close()
	if file, err := os.Lstat(l.path); err == nil && os.SameFile(file, l.file) {
		_ = os.Remove(l.path)
	}
	return nil
}

// settle gives a socket its owner and its name.
func settle(born, path string, owner int) (fs.FileInfo, error) {
	if owner != 0 {
		if err := os.Chown(born, owner, -1); err != nil {
			return nil, err
		}
	}
	file, err := os.Lstat(born)
	if err != nil {
		return nil, err
	}
	if file.Mode() != fs.ModeSocket|0o600 {
		return nil, fmt.Errorf("%s has the mode %v, wanted is a socket for its owner alone", born, file.Mode())
	}
	return file, os.Rename(born, path)
}

// checkStale fails for what must not be replaced: anything that is no socket, and a socket
// that somebody listens on.
func checkStale(path string) error {
	file, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if file.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("a socket is wanted there, found %v: move it away", file.Mode())
	}
	connection, err := net.DialTimeout("unix", path, dialTimeout)
	if err != nil {
		return nil
	}
	_ = connection.Close()
	return errors.New("another process serves it: stop that first")
}
