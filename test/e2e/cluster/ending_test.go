//go:build e2e

package cluster_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
)

// endingVariable makes this program run a cluster that ends in a certain way, in another lab, instead of its
// tests.
const endingVariable = "BTRFS_CSI_E2E_TEST_ENDING"

const isUp = "the cluster is up"

func endingLab() string { return lab + "-ending" }

// runEnding runs such a cluster.
func runEnding(ending string) int {
	return (&cluster.Lab{Name: endingLab()}).Main(func() int {
		c, err := cluster.Start(context.Background(), cluster.Options{Nodes: make([]cluster.NodeOptions, 1)})
		if err == nil {
			_, err = c.Nodes[0].Exec(context.Background(), "sh", "-ec", loopCommands(endingLab()))
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(isUp)
		if ending == "panic" {
			panic("as a test does that takes too long")
		}
		select {}
	})
}

// TestEndings checks that a cluster leaves nothing behind, in whatever way its process ends.
func TestEndings(t *testing.T) {
	send := func(signal os.Signal) func(*exec.Cmd) error {
		return func(cmd *exec.Cmd) error { return cmd.Process.Signal(signal) }
	}
	for name, test := range map[string]struct {
		end       func(outermost *exec.Cmd) error
		keepsLogs bool
	}{
		"panic":       {func(*exec.Cmd) error { return nil }, true}, // the program panics without a signal
		"interrupted": {send(unix.SIGINT), true},
		"killed":      {send(unix.SIGKILL), false},
		"down":        {func(*exec.Cmd) error { return cluster.Down(endingLab()) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			cmd, output := startEnding(t, name)
			if name == "down" {
				checkEntries(t)
			}
			if err := test.end(cmd); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err == nil {
				t.Error("exit code 0, want another")
			}
			if name == "killed" {
				// The next lab that starts would do this.
				if err := cluster.Clean(); err != nil {
					t.Fatal(err)
				}
			}
			if left := leftBy(endingLab()); len(left) > 0 {
				t.Errorf("left on the machine:\n%s", strings.Join(left, "\n"))
			}
			if test.keepsLogs {
				checkKeptLogs(t, output.String())
			}
		})
	}
}

// checkEntries runs commands in the lab and on a node of it, from outside.
func checkEntries(t *testing.T) {
	t.Helper()
	kubectl, err := cluster.Enter(t.Context(), endingLab(), "kubectl", "get", "nodes", "--output", "name")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := kubectl.CombinedOutput(); err != nil || string(out) != "node/node1\n" {
		t.Errorf("kubectl get nodes: %v: %q, want node1", err, out)
	}
	hostname, err := cluster.EnterNode(t.Context(), endingLab(), "node1", "hostname")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := hostname.CombinedOutput(); err != nil || string(out) != "node1\n" {
		t.Errorf("hostname on node1: %v: %q", err, out)
	}
	if _, err := cluster.EnterNode(t.Context(), endingLab(), "node2", "hostname"); err == nil {
		t.Error("entered a node that there is not")
	}
}

// startEnding starts the program and returns when its cluster is up.
func startEnding(t *testing.T, ending string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), endingVariable+"="+ending)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr := &bytes.Buffer{}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timeout := time.AfterFunc(2*patience, func() { _ = cmd.Process.Kill() })
	defer timeout.Stop()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if strings.TrimSpace(line) != isUp {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		t.Fatalf("the cluster did not come up: %v: %s%s", err, line, stderr)
	}
	return cmd, stderr
}

// checkKeptLogs checks that the output has the directory of the logs, and removes that.
func checkKeptLogs(t *testing.T, output string) {
	t.Helper()
	_, after, _ := strings.Cut(output, "The logs of the cluster are in ")
	dir, _, _ := strings.Cut(after, "\n")
	if !strings.HasPrefix(filepath.Base(dir), endingLab()) {
		t.Fatalf("no word of where the logs are in %q", output)
	}
	for _, log := range []string{"kube-apiserver.log", "node1-kubelet.log"} {
		if info, err := os.Stat(filepath.Join(dir, log)); err != nil || info.Size() == 0 {
			t.Errorf("%s in %s: %v, want some content", log, dir, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
}
