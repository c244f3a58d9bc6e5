package pool

import (
	"math"
	"time"
)

// Guarded returns a pool in which everything may take no longer than d.
func Guarded(filesystem Filesystem, d time.Duration) Filesystem {
	return New("guarded", filesystem, Patience{Look: d, Walk: d, Step: d, Thaw: d})
}

// PollNever has a Host of this machine end its Wait for a change alone.
func PollNever(host Host) { host.(*node).poll = math.MaxInt64 }

// MostAsking is how many look-ups in one pool may be under way.
const MostAsking = mostAsking
