package btrfs

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// SnapshotsShare reports whether snapshots can share a transaction, as they do since Linux 6.6. No
// call can find that out.
func SnapshotsShare() bool {
	var major, minor int
	_, err := fmt.Sscanf(release(), "%d.%d", &major, &minor)
	return err == nil && (major > 6 || major == 6 && minor >= 6)
}

// release returns the version of the running kernel, as uname -r prints it.
func release() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		panic(err) // not with a valid pointer
	}
	return unix.ByteSliceToString(name.Release[:])
}
