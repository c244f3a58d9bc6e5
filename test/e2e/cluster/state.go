package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// root is the parent of the directories of all labs. It is on a disk, where /tmp may be in memory.
const root = "/var/tmp/btrfs-csi-e2e"

// These are entries of root other than labs.
const (
	rootLock = ".lock" // locked by a process that makes or cleans up labs
	keptLogs = ".log"
)

const componentsFile = "components.json"

// Names of labs become parts of paths and of cgroups.
var labName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)

// state is the part of a lab outside of its namespaces.
type state struct {
	dir  string
	lock *os.File // nil in processes other than the outermost one
}

func (s *state) name() string { return filepath.Base(s.dir) }

// newState makes the directory of a lab.
func newState(name string) (s *state, err error) {
	err = withRoot(func() error {
		if name != "" {
			s, err = claim(name)
			return err
		}
		for n := 1; ; n++ {
			if s, err = claim(strconv.Itoa(n)); !errors.Is(err, errInUse) {
				return err
			}
		}
	})
	return s, err
}

var errInUse = errors.New("in use")

func claim(name string) (*state, error) {
	if !labName.MatchString(name) {
		return nil, fmt.Errorf("name of a lab: want up to 31 small letters, digits and dashes, have %q", name)
	}
	s := &state{dir: filepath.Join(root, name)}
	if err := os.MkdirAll(filepath.Join(s.dir, "log"), 0o700); err != nil {
		return nil, err
	}
	if free, err := s.tryLock(); err != nil {
		return nil, err
	} else if !free {
		return nil, fmt.Errorf("a lab named %q is up: %w", name, errInUse)
	}
	return s, nil
}

// tryLock locks the lab. It returns false if another process uses it.
func (s *state) tryLock() (bool, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return false, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		}
		return false, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	s.lock = f
	return true, nil
}

// withRoot calls do while no other process can make or clean up labs.
func withRoot(do func() error) error {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(root, rootLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", root, err)
	}
	return do()
}

// writePids writes the process IDs of the outermost process and of pid 1 of the lab, as seen by this process.
// It adds the start of the latter, because the kernel may give the ID to another process.
func (s *state) writePids(lab int) error {
	started, err := startOf(lab)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.dir, "pids"), fmt.Appendf(nil, "%d %d %s\n", os.Getpid(), lab, started), 0o600)
}

func (s *state) pids() (outermost, lab int, started string, err error) {
	data, err := os.ReadFile(filepath.Join(s.dir, "pids"))
	if err == nil {
		_, err = fmt.Sscan(string(data), &outermost, &lab, &started)
	}
	return outermost, lab, started, err
}

// startOf returns the start of a process, in ticks since the boot of the machine. It fails if the process has
// ended, even if its parent has not waited for it yet.
func startOf(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The name in parentheses may contain anything. The start is the 20th field after it.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat has %d fields after the name, want 20 or more", pid, len(fields))
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return "", fmt.Errorf("process %d has ended", pid)
	}
	return fields[19], nil
}

// labPid returns the process ID of pid 1 of a running lab, as seen by this process.
func (s *state) labPid() (int, error) {
	_, lab, started, err := s.pids()
	if err != nil {
		return 0, fmt.Errorf("no cluster named %q is up", s.name())
	}
	if now, err := startOf(lab); err != nil || now != started {
		return 0, fmt.Errorf("the cluster named %q is no longer up", s.name())
	}
	return lab, nil
}

// keepLogs moves the logs out of the directory of the lab, and returns their new directory.
func (s *state) keepLogs() string {
	kept := filepath.Join(root, keptLogs, s.name()+time.Now().Format("-20060102-150405"))
	if err := os.MkdirAll(filepath.Dir(kept), 0o700); err != nil {
		return ""
	}
	// Remove succeeds only if the directory is empty.
	if os.Remove(filepath.Join(s.dir, "log")) == nil || os.Rename(filepath.Join(s.dir, "log"), kept) != nil {
		return ""
	}
	return kept
}

// remove removes everything that the processes of the lab have left. They have to have ended. remove may be
// called again.
func (s *state) remove() error {
	files, _ := filepath.Glob(filepath.Join(s.dir, disksDir, "*"))
	files = append(files, driverFiles(filepath.Join(s.dir, "*"))...)
	err := errors.Join(detachLoops(files...), removeCgroups(s.cgroup("*")))
	if err == nil {
		// The directory is last, because it names what else has to be removed.
		err = os.RemoveAll(s.dir)
	}
	if s.lock != nil {
		s.lock.Close()
	}
	if err != nil {
		return fmt.Errorf("clean up after the lab in %s: %w", s.dir, err)
	}
	return nil
}

// Clean removes everything of labs whose processes were killed, except kept logs.
func Clean() error {
	return withRoot(func() error {
		entries, err := os.ReadDir(root)
		if err != nil {
			return err
		}
		var errs []error
		for _, entry := range entries {
			if !labName.MatchString(entry.Name()) {
				continue
			}
			s := &state{dir: filepath.Join(root, entry.Name())}
			unused, err := s.tryLock()
			if unused {
				err = errors.Join(s.waitForEnd(), s.remove())
			}
			errs = append(errs, err)
		}
		return errors.Join(append(errs, removeStrayCgroups())...)
	})
}

// CleanLogs removes the kept logs of failed runs.
func CleanLogs() error { return os.RemoveAll(filepath.Join(root, keptLogs)) }

// waitForEnd waits until the kernel has ended the lab of a killed outermost process.
func (s *state) waitForEnd() error {
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		pid, err := s.labPid()
		if err != nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("lab %q: its first process, %d, lives on although the one that started it is gone; kill it", s.name(), pid)
		}
	}
}

// Down ends a lab of another process, and waits until that has cleaned up.
func Down(name string) error {
	s, err := openState(name)
	if err != nil {
		return err
	}
	outermost, _, _, err := s.pids()
	if err != nil {
		return err
	}
	if err := unix.Kill(outermost, unix.SIGTERM); err != nil {
		return fmt.Errorf("end process %d: %w", outermost, err)
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if _, err := os.Stat(s.dir); errors.Is(err, os.ErrNotExist) {
			return nil
		}
	}
	return fmt.Errorf("process %d has not cleaned up %s within two minutes", outermost, s.dir)
}
