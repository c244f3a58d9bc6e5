package mount

import (
	"errors"
	"fmt"
)

var (
	// ErrInvalid is the kind of errors of a request that can never be served, such as
	// flags that contradict each other.
	ErrInvalid = errors.New("invalid")
	// ErrOutside is the ErrInvalid of a path that is not below the directory of the targets.
	ErrOutside = fmt.Errorf("outside: %w", ErrInvalid)
	// ErrInTheWay is the kind of errors that somebody has to do something about at the
	// target first.
	ErrInTheWay = errors.New("in the way")
	// ErrSilent is returned when the kernel does not answer a question about mounts.
	ErrSilent = fmt.Errorf("the kernel has not answered within %s what is mounted: a disk of this node may not answer; look for processes in state D, and for that disk in the kernel's log", patience)
)

// problem is an error that says all in its text, and has a kind besides.
type problem struct {
	kind error
	text string
}

func (p *problem) Error() string { return p.text }
func (p *problem) Unwrap() error { return p.kind }

func invalid(format string, args ...any) error {
	return &problem{ErrInvalid, fmt.Sprintf(format, args...)}
}
func inTheWay(format string, args ...any) error {
	return &problem{ErrInTheWay, fmt.Sprintf(format, args...)}
}
