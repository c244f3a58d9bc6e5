package btrfstest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// taskVariable names the task that a copy of the test binary runs instead of tests.
const taskVariable = "BTRFS_CSI_TEST_TASK"

var tasks = map[string]func() int{
	"nothing": func() int { return 0 },
	"fail":    func() int { return 3 },
	"namespace": func() int {
		namespace, err := os.Readlink("/proc/self/ns/mnt")
		os.Stdout.WriteString(namespace)
		return exitCode(err)
	},
	"propagation": func() int {
		out, err := exec.Command("findmnt", "--noheadings", "--output", "PROPAGATION", "/").Output()
		os.Stdout.Write(out)
		return exitCode(err)
	},
	"leave a mount": func() int {
		dir, err := os.MkdirTemp("", "")
		if err == nil {
			err = unix.Mount("none", dir, "tmpfs", 0, "")
		}
		return exitCode(err)
	},
	"leave a loop device": func() int {
		image := filepath.Join(os.TempDir(), "image")
		if os.WriteFile(image, make([]byte, 1<<20), 0o600) != nil {
			return 1
		}
		return exitCode(exec.Command("losetup", "--find", image).Run())
	},
}

func exitCode(err error) int {
	if err != nil {
		return 1
	}
	return 0
}

func TestMain(m *testing.M) {
	if task := tasks[os.Getenv(taskVariable)]; task != nil {
		patience = 0
		os.Exit(Main(task))
	}
	os.Exit(Main(m.Run))
}

// perform runs a task in a copy of the test binary.
func perform(t *testing.T, task string, env ...string) (stdout, stderr string, code int) {
	t.Helper()
	RequireRoot(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), taskVariable+"="+task), env...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run()
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestMainKeepsTheExitCode(t *testing.T) {
	for task, want := range map[string]int{"nothing": 0, "fail": 3} {
		if _, stderr, code := perform(t, task); code != want || stderr != "" {
			t.Errorf("%s: exit code %d, want %d: %s", task, code, want, stderr)
		}
	}
}

func TestMainTakesAMountNamespace(t *testing.T) {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	namespace, stderr, code := perform(t, "namespace")
	if code != 0 || !strings.HasPrefix(namespace, "mnt:") || namespace == own {
		t.Errorf("namespace %q, that of its parent is %q; exit code %d: %s", namespace, own, code, stderr)
	}
}

func TestMainSetsThePropagation(t *testing.T) {
	for variable, want := range map[string]string{"": "private", "1": "shared"} {
		propagation, stderr, code := perform(t, "propagation", SharedVariable+"="+variable)
		if got := strings.TrimSpace(propagation); code != 0 || got != want {
			t.Errorf("%s=%s: / is %q, want %q; exit code %d: %s", SharedVariable, variable, got, want, code, stderr)
		}
	}
}

func TestMainFindsWhatIsLeft(t *testing.T) {
	for task, want := range map[string]string{"leave a mount": "\nmount ", "leave a loop device": "\nloop device loop"} {
		t.Run(task, func(t *testing.T) {
			dir := t.TempDir()
			t.Cleanup(func() { freeLoops(t, dir) })
			_, stderr, code := perform(t, task, "TMPDIR="+dir)
			if code != 1 || !strings.Contains(stderr, want) || !strings.Contains(stderr, dir) {
				t.Errorf("exit code %d, want 1, and %q and %q in\n%s", code, want, dir, stderr)
			}
		})
	}
}

// freeLoops frees the loop devices on files below dir.
func freeLoops(t *testing.T, dir string) {
	found, err := loops(dir)
	if err != nil {
		t.Error(err)
	}
	for _, loop := range found {
		run(t, "losetup", "--detach", filepath.Join("/dev", strings.Fields(loop)[2]))
	}
}
