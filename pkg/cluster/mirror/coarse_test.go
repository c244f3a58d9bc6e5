package mirror

import (
	"testing"
)

func TestCoarse(t *testing.T) {
	for _, c := range []struct{ n, whole, want int64 }{
		{0, 0, 0}, {5, 0, 5}, {1000, 128, 1000}, {1000, 256, 1000}, {1001, 256, 1000}, {10146860199, 10 << 30, 10133438464},
	} {
		if got := coarse(c.n, c.whole); got != c.want {
			t.Errorf("coarse(%d, %d): want %d, got %d", c.n, c.whole, c.want, got)
		}
	}
}
