package snapshot

import (
	"fmt"
	"math"
)

const (
	// MinSize is the smallest size of a volume, in bytes. Sizes are rounded up to a multiple of
	// it.
	MinSize = 1 << 20
	// DefaultSize is the size of a volume whose request has none, in bytes.
	DefaultSize = 1 << 30
)

// Range is the requested size, in bytes. 0 leaves a bound open.
type Range struct {
	Required int64 // at least
	Limit    int64 // at most
}

// choose picks the size for a copy of a source of size least, or for a new volume if least is 0.
// It is Required, rounded up, but not above Limit. ErrOutOfRange if there is no such
// size.
func (r Range) choose(least int64) (int64, error) {
	if r.Required < 0 || r.Limit < 0 {
		return 0, fmt.Errorf("required_bytes %d and limit_bytes %d must not be negative: %w", r.Required, r.Limit, ErrOutOfRange)
	}
	want := r.Required
	switch {
	case want == 0 && least > 0:
		want = least
	case want == 0:
		want = DefaultSize
		if r.Limit > 0 {
			want = min(want, r.Limit)
		}
	}
	size, err := r.roundUp(want)
	if err != nil {
		return 0, err
	}
	if want == least {
		size = least // the source's size, which the Limit of its request kept from being rounded up
	}
	switch {
	case size < least:
		return 0, fmt.Errorf("%d bytes wanted, but the source has %d: ask for at least that: %w", want, least, ErrOutOfRange)
	case r.Limit > 0 && size > r.Limit:
		return 0, fmt.Errorf("at least %d and at most %d bytes wanted, the least possible is %d: %w", r.Required, r.Limit, size, ErrOutOfRange)
	case size < MinSize:
		return 0, fmt.Errorf("at most %d bytes wanted, the least size is %d: %w", r.Limit, MinSize, ErrOutOfRange)
	}
	return size, nil
}

// Least returns the size that Resize gives a volume smaller than Required: Required rounded up, but
// not above Limit.
func (r Range) Least() int64 {
	size, err := r.roundUp(r.Required)
	if err != nil {
		return r.Required
	}
	return size
}

// fits reports whether an existing size satisfies the request.
func (r Range) fits(size int64) bool {
	return size >= r.Required && (r.Limit == 0 || size <= r.Limit)
}

// roundUp rounds a size up to a multiple of MinSize, but not above Limit.
func (r Range) roundUp(size int64) (int64, error) {
	if size > math.MaxInt64-MinSize {
		return 0, fmt.Errorf("%d bytes wanted, more than any filesystem can have: %w", size, ErrOutOfRange)
	}
	rounded := (size + MinSize - 1) / MinSize * MinSize
	if size <= r.Limit {
		rounded = min(rounded, r.Limit)
	}
	return rounded, nil
}

// grow picks the new size of a volume of size old; old if that is enough.
func (r Range) grow(old int64) (int64, error) {
	if r.Required < 0 || r.Limit < 0 || r.Limit > 0 && r.Limit < max(old, r.Required) {
		return 0, fmt.Errorf("required_bytes %d and limit_bytes %d wanted, but the volume has %d bytes and is never shrunk: %w", r.Required, r.Limit, old, ErrOutOfRange)
	}
	if r.Required <= old {
		return old, nil
	}
	return r.roundUp(r.Required)
}
