// Package kernel says which Linux is running.
package kernel

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Release returns the version of the running kernel, as uname -r prints it.
func Release() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		panic(err) // not with a valid pointer
	}
	return unix.ByteSliceToString(name.Release[:])
}

// AtLeast reports whether the running kernel is Linux major.minor or later. It is for what no call
// can find out.
func AtLeast(major, minor int) bool {
	m, n := Version()
	return m > major || m == major && n >= minor
}

// Version returns the first two numbers of Release.
func Version() (major, minor int) { return version(Release()) }

func version(release string) (major, minor int) {
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		panic(fmt.Sprintf("the kernel has the release %q: %v", release, err))
	}
	return major, minor
}
