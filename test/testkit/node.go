package testkit

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// NodeID is the name of every node.
const NodeID = "node"

// Node has the files and directories of a driver. They are separate from those of a driver that
// serves this machine.
type Node struct {
	State, Kubelet string // directories
	Socket, Log    string // files
}

// NewNode returns a node whose files are below a directory.
func NewNode(dir string) Node {
	return Node{
		State: filepath.Join(dir, "state"), Kubelet: filepath.Join(dir, "kubelet"),
		Socket: filepath.Join(dir, "csi.sock"), Log: filepath.Join(dir, "driver.log"),
	}
}

// Pool returns the directory of the default pool.
func (n Node) Pool() string { return filepath.Join(n.State, "pools", pool.Default) }

// Make creates the directories.
func (n Node) Make() error {
	return errors.Join(os.MkdirAll(n.Pool(), 0o700), os.MkdirAll(n.Kubelet, 0o700))
}

// Command returns the command that runs a driver. Later flags override earlier ones.
func (n Node) Command(binary string, flags ...string) *exec.Cmd {
	args := []string{"serve", "--node-id=" + NodeID, "--endpoint=unix://" + n.Socket, "--state-dir=" + n.State, "--kubelet-dir=" + n.Kubelet}
	return exec.Command(binary, append(args, flags...)...)
}

// LogText returns the log of the drivers of the node, or the error of reading it.
func (n Node) LogText() string {
	text, err := os.ReadFile(n.Log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// LastWords returns the last lines of the log.
func (n Node) LastWords() string {
	lines := strings.Split(strings.TrimSpace(n.LogText()), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// MountsIn returns the mount points at and below a directory, in the order of mounting.
func MountsIn(dir string) ([]string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	var points []string
	for _, m := range mounts {
		points = append(points, m.Mountpoint)
	}
	return points, err
}

// RemoveAll removes a directory after it has unmounted everything below it.
func RemoveAll(dir string) error {
	points, err := MountsIn(dir)
	for _, point := range slices.Backward(points) {
		err = errors.Join(err, btrfstest.Unmount(point))
	}
	if err != nil { // a mounted filesystem must not be emptied
		return fmt.Errorf("%s is left behind: %w", dir, err)
	}
	return os.RemoveAll(dir)
}

// InDirectory makes a directory for fn and takes it away, unless something is still
// mounted there.
func InDirectory(parent, name string, fn func(dir string) error) error {
	dir, err := os.MkdirTemp(parent, "btrfs-csi-"+name+"-")
	if err != nil {
		return err
	}
	err = fn(dir)
	points, tableErr := MountsIn(dir)
	if tableErr != nil || len(points) > 0 {
		return errors.Join(err, tableErr, fmt.Errorf("%s is left behind: %d mounts are below it", dir, len(points)))
	}
	return errors.Join(err, os.RemoveAll(dir))
}
