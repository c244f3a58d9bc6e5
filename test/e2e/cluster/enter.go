package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/btrfs-csi/btrfs-csi/test/e2e/components"
)

// Enter returns a command that runs in a lab of another process, like its tests, with the kubeconfig of the
// cluster and with the components in PATH.
func Enter(ctx context.Context, lab, program string, args ...string) (*exec.Cmd, error) {
	s, err := openState(lab)
	if err != nil {
		return nil, err
	}
	return s.enter(ctx, append([]string{program}, args...)...)
}

// EnterNode returns a command that runs in a node of such a lab.
func EnterNode(ctx context.Context, lab, node, program string, args ...string) (*exec.Cmd, error) {
	s, err := openState(lab)
	if err != nil {
		return nil, err
	}
	pid, err := os.ReadFile(s.nodePidFile(node))
	if err != nil {
		return nil, fmt.Errorf("no node %q is running in the cluster %q", node, lab)
	}
	// The ID of pid 1 of the node differs between the lab and this process.
	return s.enter(ctx, append(nsenter(string(pid), program), args...)...)
}

// openState returns the state of a running lab.
func openState(lab string) (*state, error) {
	if !labName.MatchString(lab) {
		return nil, fmt.Errorf("no cluster is named %q", lab)
	}
	s := &state{dir: filepath.Join(root, lab)}
	_, err := s.labPid()
	return s, err
}

func (s *state) enter(ctx context.Context, command ...string) (*exec.Cmd, error) {
	pid, err := s.labPid()
	if err != nil {
		return nil, err
	}
	set, err := s.readComponents()
	if err != nil {
		return nil, err
	}
	args := append(nsenter(strconv.Itoa(pid), "env", "PATH="+set.Bin+":"+searchPath, "KUBECONFIG="+s.kubeconfig()), command...)
	return exec.CommandContext(ctx, args[0], args[1:]...), nil
}

// nsenter runs a command in the namespaces of a process.
func nsenter(pid string, command ...string) []string {
	return append([]string{"nsenter", "--target", pid, "--mount", "--net", "--pid", "--ipc", "--uts", "--"}, command...)
}

func (s *state) kubeconfig() string { return filepath.Join(s.dir, "kubeconfig") }

// nodePidFile contains the ID that pid 1 of a running node has in the lab.
func (s *state) nodePidFile(node string) string { return filepath.Join(s.dir, node, "pid") }

func (s *state) writeComponents(set components.Set) error {
	data, err := json.Marshal(set)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.dir, componentsFile), data, 0o600)
}

func (s *state) readComponents() (set components.Set, err error) {
	data, err := os.ReadFile(filepath.Join(s.dir, componentsFile))
	if err == nil {
		err = json.Unmarshal(data, &set)
	}
	return set, err
}
