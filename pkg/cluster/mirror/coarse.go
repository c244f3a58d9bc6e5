package mirror

// grains are the steps in which bytes are published, in parts of the whole: not every
// write of a pod is published.
const grains = 128

// coarse rounds bytes down to a power of two that is small beside the whole, which also
// makes them easy to read.
func coarse(n, whole int64) int64 {
	step := int64(1)
	for step*2 <= whole/grains {
		step *= 2
	}
	return n / step * step
}
