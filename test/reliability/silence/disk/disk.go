package disk

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Names in the directory of a disk.
const (
	belowName = "below" // the file with the content of the disk
	mountName = "fuse"
	fileName  = "disk"
)

// Disk is a disk that a child of this process serves.
type Disk struct {
	dir     string
	server  *exec.Cmd
	orders  io.WriteCloser
	replies *bufio.Scanner
}

// ErrLate is the error of Answer if the server has ended the silence before.
var ErrLate = fmt.Errorf("the disk was not silent any more: its server ends that after %v", MostSilence)

// New makes an empty disk of a size in bytes, sparse, in an empty directory.
func New(dir string, size int64) (*Disk, error) {
	below, err := os.Create(filepath.Join(dir, belowName))
	if err != nil {
		return nil, err
	}
	err = errors.Join(below.Truncate(size), below.Close(), os.Mkdir(filepath.Join(dir, mountName), 0o700))
	return &Disk{dir: dir}, err
}

// Below returns the path of the file with the content of the disk. It may be written before Start.
func (d *Disk) Below() string { return filepath.Join(d.dir, belowName) }

// Path returns the path of the disk. It exists between Start and Stop.
func (d *Disk) Path() string { return filepath.Join(d.dir, mountName, fileName) }

// Start serves the disk in another process of this program; see Main.
func (d *Disk) Start() (err error) {
	d.server = exec.Command("/proc/self/exe")
	d.server.Env = append(os.Environ(), environment+"="+d.dir)
	d.server.Stderr = os.Stderr
	d.server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if d.orders, err = d.server.StdinPipe(); err != nil {
		return err
	}
	replies, err := d.server.StdoutPipe()
	if err != nil {
		return err
	}
	d.replies = bufio.NewScanner(replies)
	if err := d.server.Start(); err != nil {
		return err
	}
	return d.expect(answers)
}

// Silence makes the disk answer nothing until Answer, but not for longer than MostSilence.
func (d *Disk) Silence() error { return d.command(silence, silent) }

// Answer ends the silence. It returns ErrLate if the server has ended it before.
func (d *Disk) Answer() error { return d.command(answer, answers) }

func (d *Disk) command(line, wanted string) error {
	if _, err := fmt.Fprintln(d.orders, line); err != nil {
		return err
	}
	return d.expect(wanted)
}

func (d *Disk) expect(wanted string) error {
	if !d.replies.Scan() {
		return fmt.Errorf("the server of the disk has ended: %w", errors.Join(d.replies.Err(), io.ErrUnexpectedEOF))
	}
	switch got := strings.TrimSpace(d.replies.Text()); got {
	case wanted:
		return nil
	case late:
		return ErrLate
	default:
		return fmt.Errorf("the server of the disk says %q, wanted is %q", got, wanted)
	}
}

// Stop ends the server. The disk may not be mounted any more.
func (d *Disk) Stop() error {
	if d.server == nil || d.server.Process == nil {
		return nil
	}
	err := errors.Join(d.orders.Close(), d.server.Wait())
	if gone := unix.Unmount(filepath.Join(d.dir, mountName), unix.MNT_DETACH); gone != nil && !errors.Is(gone, unix.EINVAL) {
		err = errors.Join(err, gone)
	}
	return err
}
