package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine describes where and when something was measured, without names.
type machine struct {
	Cores    int       `json:"cores"`
	Arch     string    `json:"arch"`
	MemoryMB uint64    `json:"memory_mb"`
	Kernel   string    `json:"kernel"` // its version, without the suffix of the distributor
	Mounted  string    `json:"mounted"`
	Driver   string    `json:"driver"`     // its version
	Peer     string    `json:"containerd"` // the version of containerd's snapshotter
	Time     time.Time `json:"time"`
}

// like reports whether numbers of two machines can be compared.
func (m machine) like(other machine) bool {
	return m.Cores == other.Cores && m.Arch == other.Arch && m.MemoryMB == other.MemoryMB && m.Kernel == other.Kernel
}

func thisMachine(driver string) (machine, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return machine{}, err
	}
	release := string(name.Release[:max(0, bytes.IndexByte(name.Release[:], 0))])
	version, _, _ := strings.Cut(release, "-")
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return machine{}, err
	}
	return machine{
		Cores: runtime.NumCPU(), Arch: runtime.GOARCH, MemoryMB: info.Totalram * uint64(info.Unit) >> 20, Kernel: version,
		Mounted: "loop device with direct I/O on a sparse file", Driver: driver, Peer: moduleVersion("github.com/containerd/containerd/v2"), Time: time.Now().UTC().Truncate(time.Second),
	}, nil
}

// moduleVersion returns the version of a module of this program.
func moduleVersion(path string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, module := range info.Deps {
		if module.Path == path {
			return module.Version
		}
	}
	return ""
}

// residentMiB returns the resident memory of a process, in MiB.
func residentMiB(pid int) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		var kib float64
		if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &kib); err == nil {
			return kib / 1024, nil
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}

// openFiles returns the number of open descriptors of a process.
func openFiles(pid int) (float64, error) {
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return float64(len(names)), err
}
