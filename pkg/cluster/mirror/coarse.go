package mirror

// grains is the number of steps in which bytes are published, so that not each write of a pod
// causes an update.
const grains = 128

// coarse rounds bytes down to a multiple of a power of two that is small compared with whole. The
// result is also easy to read.
func coarse(n, whole int64) int64 {
	step := int64(1)
	for step*2 <= whole/grains {
		step *= 2
	}
	return n / step * step
}
