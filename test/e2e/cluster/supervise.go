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

// SkipVariable is the environment variable that, set to 1, skips what needs root.
const SkipVariable = "BTRFS_CSI_SKIP_ROOT_TESTS"

// What a process that this package starts from its own executable is called, and
// thereby is.
const (
	initProcess = "btrfs-csi-e2e-init" // pid 1 of the lab or of a node
	nodeProcess = "btrfs-csi-e2e-node" // what boots a node
)

// labVariable names the lab that a process runs in.
const labVariable = "BTRFS_CSI_E2E_LAB"

// namespaces are those that the lab and every node have of their own.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// Lab is where clusters run: one at a time.
type Lab struct {
	Name string    // of its directory and cgroups; one that is free if empty
	Log  io.Writer // os.Stderr if nil
	// Build makes what clusters are of; components.Build if nil. It is called
	// outside, where there is a network. Images that it adds are loaded into all
	// nodes.
	Build func(ctx context.Context, log io.Writer) (components.Set, error)
}

// Main runs the tests of a package in a lab: os.Exit(cluster.Main(m.Run)).
func Main(run func() int) int { return (&Lab{}).Main(run) }

// Init is to be the first call of a program that parses its arguments before it
// calls Main: in the first processes of a lab and of a node it does not return.
func Init() {
	switch os.Args[0] {
	case initProcess:
		os.Exit(initMain(os.Args[1:]))
	case nodeProcess:
		os.Exit(nodeMain(os.Args[1]))
	}
}

// Main builds the components, starts the program again in a lab, where run is
// called, and returns run's exit code once all that the lab made is gone. Only in
// the outermost process does it return. The logs are kept if run fails.
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
	// From here to the end, so that no signal keeps it from cleaning up.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	defer signal.Stop(signals)
	set, err := l.build(signals)
	if err != nil {
		return 0, fmt.Errorf("build the components: %w", err)
	}
	if err := Clean(); err != nil {
		fmt.Fprintln(l.Log, "Error:", err) // of others, and in nobody's way
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
	// The kernel sends Pdeathsig when the thread ends that started the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := initCommand(os.Args...)
	cmd.Env = append(os.Environ(), labVariable+"="+s.dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	// In a process group of its own, the lab gets a terminal's Ctrl-C only from here.
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

// passOn passes signals on. Who asks twice for the end need not wait for it.
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
			_ = to.Signal(s) // it may just have ended
		}
	}
}

// initCommand is this program, called args, in namespaces of its own.
func initCommand(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{initProcess}, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
	return cmd
}

// initMain is pid 1 of its namespaces: it runs this program once more, reaps what is
// left to it, and returns the exit code. With it the kernel ends all the rest.
func initMain(args []string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "Error: first process of new namespaces:", err)
		return 1
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	// What is mounted outside is mounted here too, but not the other way round.
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
	_ = os.Chdir("/") // the directory is the child's matter, and may be unmounted
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

// inside is the lab that this process runs in.
var inside struct {
	*state
	components components.Set
}

// Components returns what the clusters of the lab that this process is in are made of.
func Components() components.Set { return inside.components }

// enter is Main in the process that runs in a lab.
func enter(dir string, run func() int) int {
	// Not for what the tests start. And no proxy is of use where there is no way out.
	for _, variable := range []string{labVariable, "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"} {
		_ = os.Unsetenv(variable) // fails for no name but an empty one
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
