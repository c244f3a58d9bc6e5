package mount

import (
	"errors"
	"fmt"
)

var (
	// ErrInvalid is the kind of errors for requests that can never succeed, such as flags
	// that contradict each other.
	ErrInvalid = errors.New("invalid")
	// ErrOutside is the ErrInvalid for a path outside of the directory of targets.
	ErrOutside = fmt.Errorf("outside: %w", ErrInvalid)
	// ErrInTheWay is the kind of errors for a target that a person must clear first.
	ErrInTheWay = errors.New("in the way")
	// ErrNoFilesystem means that the kernel refuses what is on a device: it is no filesystem of
	// the wanted type, or a damaged one.
	ErrNoFilesystem = errors.New("no whole filesystem of that type is on it")
	// ErrSilent means that the kernel has not answered a question about mounts in time.
	ErrSilent = fmt.Errorf("the kernel has not answered within %s what is mounted: a disk of this node may not answer; look for processes in state D, and for that disk in the kernel's log", patience)
)

// problem is an error with a complete text and a kind for errors.Is.
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
