package btrfstest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// SharedVariable is the environment variable that, set to 1, makes every mount of the
// tests a shared one, as systemd makes them on the machines of users.
const SharedVariable = "BTRFS_CSI_TEST_SHARED_MOUNTS"

// insideVariable says to a test binary that Main has started it again.
const insideVariable = "BTRFS_CSI_TEST_INSIDE"

// Main runs the tests of a package, run being m.Run, and returns the exit code. Every
// package whose tests mount something calls it in TestMain:
//
//	func TestMain(m *testing.M) { os.Exit(btrfstest.Main(m.Run)) }
//
// The tests get a mount namespace of their own, so that how the machine has mounted its
// root does not matter, and no mount outlives the test binary. They fail if a mount or a
// loop device is left at the end. Their temporary files are in a directory of their own.
func Main(run func() int) int {
	if os.Getenv(SkipVariable) == "1" || os.Geteuid() != 0 {
		return run() // RequireRoot skips or fails each test
	}
	if os.Getenv(insideVariable) == "" {
		fmt.Fprintln(os.Stderr, "start the tests in a mount namespace of their own:", restartInside())
		return 1
	}
	code, err := checked(run)
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		return max(code, 1)
	}
	return code
}

// restartInside puts the thread into a new mount namespace and executes the test binary
// there again, as the same process: what signals it, waits for it or shares descriptors
// with it, as go test and its fuzzing do, sees no difference. It returns only an error.
func restartInside() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	// Private first: a mount that goes from shared to shared stays with its peers outside.
	propagations := []uintptr{unix.MS_PRIVATE}
	if os.Getenv(SharedVariable) == "1" {
		propagations = append(propagations, unix.MS_SHARED)
	}
	for _, propagation := range propagations {
		if err := unix.Mount("", "/", "", unix.MS_REC|propagation, ""); err != nil {
			return fmt.Errorf("set the propagation of /: %w", err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return syscall.Exec(self, os.Args, append(os.Environ(), insideVariable+"=1"))
}

// checked runs the tests and fails if they leave something.
func checked(run func() int) (code int, err error) {
	// A worker of go test -fuzz is a process of its own, which takes its own namespace.
	if err := os.Unsetenv(insideVariable); err != nil {
		return 0, err
	}
	dir, err := tempDir()
	if err != nil {
		return 0, err
	}
	if err := os.Setenv("TMPDIR", dir); err != nil {
		return 0, err
	}
	before, err := mounts()
	if err != nil {
		return 0, err
	}
	code = run()
	if err := nothingLeft(before, dir); err != nil {
		return code, err
	}
	return code, os.RemoveAll(dir)
}

// tempDir makes a directory. Its name is short: the path of a socket has room for 107 bytes,
// of which tests with long names need nearly all.
func tempDir() (string, error) {
	parent, err := filepath.EvalSymlinks(os.TempDir()) // as the kernel names the files below it
	if err != nil {
		return "", err
	}
	for n := os.Getpid(); ; n++ {
		dir := filepath.Join(parent, "t"+strconv.FormatInt(int64(n), 36))
		if err := os.Mkdir(dir, 0o700); !errors.Is(err, fs.ErrExist) {
			return dir, err
		}
	}
}

// patience is for the kernel, which frees a loop device some time after its last use.
var patience = Patience

// nothingLeft fails if there are more mounts than before, or loop devices on files below
// dir.
func nothingLeft(before map[string]bool, dir string) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		left, err := loops(dir)
		if err != nil {
			return err
		}
		now, err := mounts()
		if err != nil {
			return err
		}
		for mount := range now {
			if !before[mount] {
				left = append(left, "mount "+mount)
			}
		}
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the tests left behind:\n%s", strings.Join(left, "\n"))
		}
	}
}

// mounts returns the mounts of this namespace, each as its ID and its place.
func mounts() (map[string]bool, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			found[fields[0]+" "+fields[4]] = true
		}
	}
	return found, nil
}

// loops returns the loop devices on files below a directory.
func loops(dir string) (found []string, err error) {
	devices, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	for _, device := range devices {
		file, err := os.ReadFile(device)
		if err == nil && strings.HasPrefix(string(file), dir+"/") { // a device may go meanwhile
			found = append(found, fmt.Sprintf("loop device %s on %s", strings.Split(device, "/")[3], strings.TrimSpace(string(file))))
		}
	}
	return found, nil
}
