// Package unixsocket listens on unix sockets that only their owner can access.
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

// LongestPath is the longest path of a socket in bytes (unix(7)), including the dot of its
// temporary name.
const LongestPath = len(unix.RawSockaddrUnix{}.Path) - 1 // without the final NUL

// dialTimeout is how long the process behind an existing socket may take to accept.
const dialTimeout = time.Second

// Listener is a net.Listener that removes the file of its socket.
type Listener struct {
	net.Listener
	path string
	file fs.FileInfo
}

// Listen creates a socket with mode 0600 that belongs to the user owner. It replaces a
// socket without listener. Errors: the path is too long, the directory cannot be written,
// the path is no socket, or another process listens on it.
//
// The socket has its mode from the bind on, without a umask, which would affect the whole
// process. It gets its owner under a temporary name, so no other owner is ever visible. The
// temporary name is the name with a dot before it. It is always the same, so a killed start
// leaves at most one file. Unlike a temporary directory it takes no block on disk, so
// Listen works on a full disk.
func Listen(path string, owner int) (*Listener, error) {
	temporary := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)) // kubelets ignore names that begin with a dot
	if len(temporary) > LongestPath {
		return nil, fmt.Errorf("the path of a socket has at most %d bytes, with a dot before its name, found %d: choose a shorter directory", LongestPath, len(temporary))
	}
	if err := checkStale(path); err != nil {
		return nil, err
	}
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }), err)
	}}
	listener, err := config.Listen(context.Background(), "unix", temporary)
	if err != nil {
		return nil, fmt.Errorf("the directory must exist and be writable: %w", err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false) // it would unlink the temporary name
	file, err := rename(temporary, path, owner)
	if err != nil {
		return nil, errors.Join(err, listener.Close(), os.Remove(temporary))
	}
	return &Listener{listener, path, file}, nil
}

// Close stops listening and removes the file of the socket, unless another process has
// replaced it.
func (l *Listener) Close() error {
	_ = l.Listener.Close()
	if file, err := os.Lstat(l.path); err == nil && os.SameFile(file, l.file) {
		_ = os.Remove(l.path)
	}
	return nil
}

// rename sets the owner of a socket and gives it its final name.
func rename(temporary, path string, owner int) (fs.FileInfo, error) {
	if owner != 0 {
		if err := os.Chown(temporary, owner, -1); err != nil {
			return nil, err
		}
	}
	file, err := os.Lstat(temporary)
	if err != nil {
		return nil, err
	}
	if file.Mode() != fs.ModeSocket|0o600 {
		return nil, fmt.Errorf("%s has the mode %v, wanted is a socket for its owner alone", temporary, file.Mode())
	}
	return file, os.Rename(temporary, path)
}

// checkStale returns an error if path is no socket, or another process listens on it.
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
