package pool

import (
	"errors"
	"fmt"
)

// Pool is a pool in use. It gives up look-ups that take too long, and its errors say what they
// mean for a request. It is safe for concurrent use.
type Pool struct {
	Name string
	Filesystem
	Commits Commits

	guard   *guard // the same object as Filesystem
	outside outsideLook
}

// New returns the pool called name on filesystem.
func New(name string, filesystem Filesystem, patience Patience) *Pool {
	g := newGuard(name, filesystem, patience)
	return &Pool{Name: name, Filesystem: g, guard: g}
}

// OnSilence sets fn, which runs in a goroutine when the pool becomes silent and when it answers
// again. Call OnSilence before the pool is used.
func (p *Pool) OnSilence(fn func()) { p.guard.changed = fn }

// Silence returns a channel that is closed when the pool becomes silent, and an ErrSilent while
// the pool is silent.
func (p *Pool) Silence() (<-chan struct{}, error) { return p.guard.state() }

// SilentError returns the ErrSilent for a call of method that was given up.
func (p *Pool) SilentError(method string) error { return p.guard.refusal(what{method: method}) }

// Patiently returns the Filesystem for an operation that has begun. Its look-ups are never given
// up.
func (p *Pool) Patiently() Filesystem { return p.guard.patiently() }

// Distrust marks the pool as silent until trust is called.
func (p *Pool) Distrust() (trust func()) {
	c := &call{}
	p.guard.giveUp(c, what{method: "Silence"})
	return func() { p.guard.end(c) }
}

// Status returns the state of the pool.
func (p *Pool) Status() Status {
	s := Status{Name: p.Name, ID: p.PoolID()}
	var errSpace, errQuota, errDevices error
	s.Space, errSpace = p.Space()
	s.Quota, errQuota = p.QuotaStatus()
	s.Devices, errDevices = p.Devices()
	err := errors.Join(errSpace, errQuota, errDevices)
	if errors.Is(err, ErrSilent) { // report the silence once, and nothing that was read before it
		if _, silence := p.Silence(); silence != nil {
			err = silence
		}
		return Status{Name: p.Name, ID: p.PoolID(), Error: err.Error(), Silent: true}
	}
	if err != nil {
		s.Error = err.Error()
	}
	return s
}

// Available returns how much may be promised to new volumes, in bytes.
func (p *Pool) Available() (int64, error) {
	room, err := p.Room()
	return beyondHeadroom(room), err
}

// CheckRoom fails if the pool cannot be written, or if growth more bytes would leave less free
// space than the headroom.
func (p *Pool) CheckRoom(growth int64) error {
	room, err := p.Room()
	if err != nil {
		return err
	}
	data, metadata := headroom(room.Size)
	switch {
	case room.ReadOnly:
		return fmt.Errorf("pool %q: %w: %s", p.Name, ErrReadOnly, whyReadOnly(room, ""))
	case room.Backing != nil && (backingFull(room) || growth > room.Available-data):
		return fmt.Errorf("pool %q: %w: the filesystem of the file %s, which the pool lies in, has %d bytes left, of which %d have to stay free, and %d are wanted: free space there",
			p.Name, ErrNoSpace, room.Backing.Path, room.Backing.Available, backingHeadroom(room), growth)
	case room.Metadata < metadata:
		return fmt.Errorf("pool %q: %w for metadata: %d bytes have to stay free, %d are: delete volumes, snapshots or files, "+
			"add a device, or free chunks by btrfs balance start -dusage=20", p.Name, ErrNoSpace, metadata, room.Metadata)
	case growth > room.Available-data:
		return fmt.Errorf("pool %q: %w: %d bytes wanted, and %d that have to stay free, of %d it has %d left: delete volumes, snapshots or files, or add a device",
			p.Name, ErrNoSpace, growth, data, room.Size, room.Available)
	}
	return nil
}
