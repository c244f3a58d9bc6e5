package pool

import (
	"errors"
	"fmt"
)

// Pool is a pool in use. It is safe for concurrent use.
type Pool struct {
	Name string
	ID   string // Filesystem.PoolID
	Filesystem
	Commits Commits

	*answers
	outside outsideLook
}

// New returns the pool called name on filesystem, which is prepared.
func New(name string, filesystem Filesystem, patience Patience) *Pool {
	return &Pool{Name: name, ID: filesystem.PoolID(), Filesystem: filesystem, answers: newAnswers(name, patience)}
}

// OnSilence sets fn, which runs in a goroutine when the pool becomes silent and when it answers
// again. Call OnSilence before the pool is used.
func (p *Pool) OnSilence(fn func()) { p.changed = fn }

// Silence returns a channel that is closed when the pool becomes silent, and an ErrSilent while
// the pool is silent.
func (p *Pool) Silence() (<-chan struct{}, error) {
	now := p.now.Load()
	return now.begun, now.err
}

// SilentError returns the ErrSilent for a call of method that was given up.
func (p *Pool) SilentError(method string) error { return p.refusal(what{method: method}) }

// Distrust marks the pool as silent until trust is called.
func (p *Pool) Distrust() (trust func()) {
	p.giveUp(&call{}, what{method: "Silence"})
	return p.end
}

// Alive is Filesystem.Alive, but is given up if it takes too long.
func (p *Pool) Alive() error {
	s := &Session{Pool: p}
	defer s.Close()
	_, err := look(s, "Alive", Slot{}, p.patience.Look, func() (struct{}, error) { return struct{}{}, p.Filesystem.Alive() })
	return err
}

// Status returns the state of the pool.
func (p *Pool) Status() Status {
	s := Status{Name: p.Name, ID: p.ID}
	session, err := p.Open()
	if err == nil {
		err = session.fill(&s)
		session.Close()
	}
	if errors.Is(err, ErrSilent) { // report the silence once, and nothing that was read before it
		if _, silence := p.Silence(); silence != nil {
			err = silence
		}
		return Status{Name: p.Name, ID: p.ID, Error: err.Error(), Silent: true}
	}
	if err != nil {
		s.Error = err.Error()
	}
	return s
}

// fill reads what a status contains.
func (s *Session) fill(status *Status) error {
	var errSpace, errQuota, errDevices error
	status.Space, errSpace = s.Space()
	status.Quota, errQuota = s.QuotaStatus()
	status.Devices, errDevices = s.Devices()
	return errors.Join(errSpace, errQuota, errDevices)
}

// Available returns how much may be promised to new volumes, in bytes.
func (s *Session) Available() (int64, error) {
	room, err := s.Room()
	return beyondHeadroom(room), err
}

// CheckRoom fails if the pool cannot be written, or if growth more bytes would leave less free
// space than the headroom.
func (s *Session) CheckRoom(growth int64) error {
	room, err := s.Room()
	if err != nil {
		return err
	}
	data, metadata := headroom(room.Size)
	switch {
	case room.ReadOnly:
		return fmt.Errorf("pool %q: %w: %s", s.Name, ErrReadOnly, whyReadOnly(room, ""))
	case room.Backing != nil && (backingFull(room) || growth > room.Available-data):
		return fmt.Errorf("pool %q: %w: the filesystem of the file %s, which the pool lies in, has %d bytes left, of which %d have to stay free, and %d are wanted: free space there",
			s.Name, ErrNoSpace, room.Backing.Path, room.Backing.Available, backingHeadroom(room), growth)
	case metadataFull(room):
		return fmt.Errorf("pool %q: %w for metadata: %d bytes have to stay free, %d are: %s", s.Name, ErrNoSpace, metadata, room.Metadata, freeMetadata)
	case growth > room.Available-data:
		return fmt.Errorf("pool %q: %w: %d bytes wanted, and %d that have to stay free, of %d it has %d left: delete volumes, snapshots or files, or add a device",
			s.Name, ErrNoSpace, growth, data, room.Size, room.Available)
	}
	return nil
}
