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

// SharedVariable is an environment variable. The value 1 makes all mounts of the tests
// shared, as systemd does on users' machines.
const SharedVariable = "BTRFS_CSI_TEST_SHARED_MOUNTS"

// insideVariable marks a test binary that Main has restarted.
const insideVariable = "BTRFS_CSI_TEST_INSIDE"

// Main runs the tests of a package and returns the exit code. Every package whose tests
// mount something calls it:
//
//	func TestMain(m *testing.M) { os.Exit(btrfstest.Main(m.Run)) }
//
// The tests run in a mount namespace of their own, so the mount propagation of the machine
// does not matter and no mount outlives them. Their temporary files are in a directory of
// their own. Main fails if a mount or a loop device is left.
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

// restartInside moves the thread into a new mount namespace and executes the test binary
// again as the same process, so signals, wait and inherited descriptors of go test still
// work. It returns only on error.
func restartInside() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	// Private first: a change from shared to shared would stay in the peer group outside.
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

// checked runs the tests and fails if they leave a mount or a loop device.
func checked(run func() int) (code int, err error) {
	// A worker of go test -fuzz is another process and needs a namespace of its own.
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

// tempDir makes a directory with a short name. The path of a socket has at most 107 bytes,
// and tests with long names need nearly all of them.
func tempDir() (string, error) {
	parent, err := filepath.EvalSymlinks(os.TempDir()) // as sysfs shows paths below it
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

// patience is the time in which the kernel must free a loop device after its last use.
var patience = Patience

// nothingLeft returns an error if there are new mounts since before, or loop devices on
// files below dir.
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

// mounts returns the mounts of this namespace, each as ID and mount point.
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
		if err == nil && strings.HasPrefix(string(file), dir+"/") { // a device may disappear meanwhile
			found = append(found, fmt.Sprintf("loop device %s on %s", strings.Split(device, "/")[3], strings.TrimSpace(string(file))))
		}
	}
	return found, nil
}
