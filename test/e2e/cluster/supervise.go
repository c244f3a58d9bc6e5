package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/test/e2e/components"
)

// SkipVariable is the environment variable that, set to 1, skips tests that need root.
const SkipVariable = "BTRFS_CSI_SKIP_ROOT_TESTS"

// These are the values of argv[0] that make this executable the first process of a lab or a node.
const (
	initProcess = "btrfs-csi-e2e-init" // pid 1 of the lab or of a node
	nodeProcess = "btrfs-csi-e2e-node" // the process that boots a node
)

// labVariable is the environment variable with the name of the lab of a process.
const labVariable = "BTRFS_CSI_E2E_LAB"

// namespaces are the kinds of namespaces that the lab and every node have of their own.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// Lab is a set of namespaces in which clusters run, one at a time.
type Lab struct {
	Name string    // of its directory and cgroups; "" for a free one
	Log  io.Writer // nil for os.Stderr
	// Build builds the programs and images of clusters; nil for components.Build. Main calls it outside
	// of the lab, where there is a network. All nodes load its images.
	Build func(ctx context.Context, log io.Writer) (components.Set, error)
}

// Main runs the tests of a package in a lab: os.Exit(cluster.Main(m.Run)).
func Main(run func() int) int { return (&Lab{}).Main(run) }

// Init has to be the first call of a program that parses its arguments before it calls Main. In the first
// processes of a lab and of a node it does not return.
func Init() {
	switch os.Args[0] {
	case initProcess:
		os.Exit(initMain(os.Args[1:]))
	case nodeProcess:
		os.Exit(nodeMain(os.Args[1]))
	}
}

// Main builds the components, and starts the program again in a lab, where Main calls run. When everything of
// the lab is removed it returns the exit code of run. It returns only in the outermost process. If run
// fails it keeps the logs.
func (l *Lab) Main(run func() int) int {
	Init()
	if dir := os.Getenv(labVariable); dir != "" {
		return enter(dir, run)
	}
	if l.Log == nil {
		l.Log = os.Stderr
	}
	if l.Build == nil {
		l.Build = components.Build
	}
	if os.Getenv(SkipVariable) == "1" {
		fmt.Fprintf(l.Log, "skipped: %s=1\n", SkipVariable)
		return 0
	}
	code, err := l.supervise()
	if err != nil {
		fmt.Fprintln(l.Log, "Error:", err)
	}
	if err != nil && code == 0 {
		code = 1
	}
	return code
}

func (l *Lab) supervise() (code int, err error) {
	if os.Geteuid() != 0 {
		return 0, fmt.Errorf("a cluster needs root; run it as root, or set %s=1 to skip what needs it", SkipVariable)
	}
	// From here on no signal can prevent the clean-up.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	defer signal.Stop(signals)
	set, err := l.build(signals)
	if err != nil {
		return 0, fmt.Errorf("build the components: %w", err)
	}
	if err := Clean(); err != nil {
		fmt.Fprintln(l.Log, "Error:", err) // labs of others are no reason to stop
	}
	s, err := newState(l.Name)
	if err != nil {
		return 0, err
	}
	if err = s.writeComponents(set); err == nil {
		code, err = s.run(signals)
	}
	if code != 0 || err != nil {
		if kept := s.keepLogs(); kept != "" {
			fmt.Fprintln(l.Log, "The logs of the cluster are in", kept)
		}
	}
	return code, errors.Join(err, s.remove())
}

// build builds until a signal comes.
func (l *Lab) build(signals <-chan os.Signal) (components.Set, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-signals:
			cancel()
		case <-ctx.Done():
		}
	}()
	return l.Build(ctx, l.Log)
}

// run starts this program again as pid 1 of a lab, and waits for its end.
func (s *state) run(signals <-chan os.Signal) (int, error) {
	// The kernel sends Pdeathsig when the starting thread ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := initCommand(os.Args...)
	cmd.Env = append(os.Environ(), labVariable+"="+s.dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	// In another process group the lab gets Ctrl-C of a terminal only from passOn.
	cmd.SysProcAttr.Setpgid = true
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start a process in namespaces of its own: %w", err)
	}
	if err := s.writePids(cmd.Process.Pid); err != nil {
		return 0, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	done := make(chan struct{})
	go passOn(signals, cmd.Process, done)
	err := cmd.Wait()
	close(done)
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	if cmd.ProcessState.Exited() {
		return cmd.ProcessState.ExitCode(), nil
	}
	return 1, fmt.Errorf("the lab ended: %s", cmd.ProcessState)
}

// passOn passes signals on. The second signal kills the process.
func passOn(signals <-chan os.Signal, to *os.Process, done <-chan struct{}) {
	asked := false
	for {
		select {
		case <-done:
			return
		case s := <-signals:
			if asked && s != unix.SIGQUIT {
				s = unix.SIGKILL
			}
			asked = true
			_ = to.Signal(s) // it fails if the process has ended
		}
	}
}

// initCommand returns a command that runs this program with other arguments in new namespaces.
func initCommand(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{initProcess}, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
	return cmd
}

// initMain is the main function of pid 1 of new namespaces. It runs this program once more, reaps orphaned
// processes, and returns the exit code. When pid 1 ends, the kernel ends all other processes there.
func initMain(args []string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "Error: first process of new namespaces:", err)
		return 1
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	// Mounts outside propagate into this namespace, but not the other way round.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fail(fmt.Errorf("keep its mounts to itself: %w", err))
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fail(fmt.Errorf("mount /proc: %w", err))
	}
	child, err := os.StartProcess("/proc/self/exe", args, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return fail(err)
	}
	pid := child.Pid
	_ = os.Chdir("/") // otherwise the directory could not be unmounted
	go func() {
		for s := range signals {
			_ = unix.Kill(pid, s.(syscall.Signal))
		}
	}()
	for {
		var status unix.WaitStatus
		switch ended, err := unix.Wait4(-1, &status, 0, nil); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fail(err)
		case ended == pid && status.Signaled():
			return 128 + int(status.Signal())
		case ended == pid:
			return status.ExitStatus()
		}
	}
}

// inside is the lab of this process.
var inside struct {
	*state
	components components.Set
}

// Components returns the programs and images of the lab of this process.
func Components() components.Set { return inside.components }

// enter is the part of Main in a lab.
func enter(dir string, run func() int) int {
	// Processes that the tests start must not have the variable, and a proxy cannot be reached from here.
	for _, variable := range []string{labVariable, "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"} {
		_ = os.Unsetenv(variable) // it fails only for an empty name
	}
	var err error
	inside.state = &state{dir: dir}
	if inside.components, err = inside.readComponents(); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
	os.Exit(run())
	return 0
}
