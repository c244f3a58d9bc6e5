package pool

import "math"

// PollNever makes Wait of a Host end by a change alone.
func PollNever(host Host) { host.(*node).poll = math.MaxInt64 }

// MostAsking is the maximum of concurrent look-ups in one pool.
const MostAsking = mostAsking
