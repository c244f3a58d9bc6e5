package writelog

import (
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Server serves disks in a child of this process.
type Server struct {
	dir    string
	child  *exec.Cmd
	client *rpc.Client
}

// Start serves disks in another process of this program; see Main. The directory has to be empty.
func Start(dir string) (*Server, error) {
	if err := os.Mkdir(filepath.Join(dir, mountName), 0o700); err != nil {
		return nil, err
	}
	s := &Server{dir: dir, child: exec.Command("/proc/self/exe")}
	s.child.Env = append(os.Environ(), environment+"="+dir)
	s.child.Stderr = os.Stderr
	s.child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	to, err := s.child.StdinPipe()
	if err != nil {
		return nil, err
	}
	from, err := s.child.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.child.Start(); err != nil {
		return nil, err
	}
	s.client = rpc.NewClient(struct {
		io.Reader
		io.WriteCloser
	}{from, to})
	if err := s.client.Call("Disks.Ready", struct{}{}, nil); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// Stop ends the server. No loop device may use a disk any more.
func (s *Server) Stop() error {
	err := errors.Join(s.client.Close(), s.child.Wait())
	if gone := unix.Unmount(filepath.Join(s.dir, mountName), unix.MNT_DETACH); gone != nil && !errors.Is(gone, unix.EINVAL) {
		err = errors.Join(err, gone)
	}
	return err
}

// Open makes a disk with the content of a file, which must not change. Its log is empty.
func (s *Server) Open(path string) (*Disk, error) {
	d := &Disk{server: s}
	return d, s.client.Call("Disks.Open", path, &d.id)
}

// Disk is one disk of a server.
type Disk struct {
	server *Server
	id     int
}

// Path returns the path of the disk.
func (d *Disk) Path() string {
	return filepath.Join(d.server.dir, mountName, strconv.Itoa(d.id))
}

// Length returns the length of the log.
func (d *Disk) Length() (length int, err error) {
	err = d.ask("Length", &length)
	return length, err
}

// Log returns the log.
func (d *Disk) Log() (log []Entry, err error) {
	err = d.ask("Log", &log)
	return log, err
}

// Reads returns the numbers of the pages that were read before they were written to this disk.
func (d *Disk) Reads() (pages []int64, err error) {
	err = d.ask("Reads", &pages)
	return pages, err
}

// Drop removes the disk. Disks that were restored from it stay.
func (d *Disk) Drop() error { return d.ask("Drop", &struct{}{}) }

// Restore makes a disk with a state of this one. Its log is empty.
func (d *Disk) Restore(state State) (*Disk, error) {
	restored := &Disk{server: d.server}
	return restored, d.server.client.Call("Disks.Restore", Restore{d.id, state}, &restored.id)
}

func (d *Disk) ask(what string, reply any) error {
	if err := d.server.client.Call("Disks."+what, d.id, reply); err != nil {
		return fmt.Errorf("disk %d: %w", d.id, err)
	}
	return nil
}
