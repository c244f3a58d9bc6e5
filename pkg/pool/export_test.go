package pool

import (
	"math"
	"time"
)

// Guarded returns a pool in which each call may take d.
func Guarded(filesystem Filesystem, d time.Duration) Filesystem {
	return New("guarded", filesystem, Patience{Look: d, Walk: d, Step: d, Thaw: d})
}

// PollNever makes Wait of a Host end by a change alone.
func PollNever(host Host) { host.(*node).poll = math.MaxInt64 }

// MostAsking is the maximum of concurrent look-ups in one pool.
const MostAsking = mostAsking
