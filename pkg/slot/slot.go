package slot

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
)

// Pool is a pool in use, and what its operations have to remember. It is safe for concurrent use.
type Pool struct {
	*pool.Pool
	stale   subvolumes // destroyed ones whose qgroups Sweep has to remove
	erased  erased
	nested  nested
	freezes sync.Map      // of *sync.Mutex, by subvolume ID: held while a volume's filesystem is frozen
	rescans atomic.Uint64 // started since the pool is in use
}

// NewPool returns a pool in use.
func NewPool(p *pool.Pool) *Pool {
	return &Pool{Pool: p, erased: erased{turn: make(chan struct{}, 1)}}
}

// Session is a pool that is open for one operation, which uses it from one goroutine.
type Session struct {
	*pool.Session
	pool *Pool
}

// Open opens the pool for one operation, which must call Close.
func (p *Pool) Open() (*Session, error) {
	s, err := p.Pool.Open()
	if err != nil {
		return nil, err
	}
	return &Session{s, p}, nil
}

// Pool returns the pool that is open.
func (s *Session) Pool() *Pool { return s.pool }

// Slot is a slot and what it contained when it was read.
type Slot struct {
	At     pool.Slot
	Record meta.Record // zero for none, or one that cannot be read

	session  *Session
	state    state
	err      error               // why the record or the subvolume cannot be read
	info     btrfs.SubvolumeInfo // of the subvolume; zero if infoErr is set
	infoErr  error
	recorded bool         // there is a record, which may be unreadable
	beside   []string     // foreign names
	ticket   *pool.Ticket // for Commits; nil for none
}

// state is the state of a slot.
type state int

const (
	ready      state = iota // record ready, subvolume
	declared                // record creating or none, no subvolume
	half                    // record creating, subvolume
	lost                    // record ready, no subvolume
	damaged                 // record, subvolume that cannot be read
	foreign                 // no record, but content
	unreadable              // record that cannot be read, or is in the wrong slot
	removing                // in AreaRemoving
)

// ErrUnreadable means that the record is damaged or of a later version.
var ErrUnreadable = errors.New("record cannot be read")

// ErrUnfinished marks an error after which changes may be left behind. A retry of the request, or
// the next reconcile, completes or undoes them.
var ErrUnfinished = errors.New("unfinished")

// unfinished marks err with ErrUnfinished.
func unfinished(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrUnfinished, err)
}

// Look returns those of the slots that exist.
func (s *Session) Look(at ...pool.Slot) ([]*Slot, error) {
	found, err := s.Find(at...)
	all := make([]*Slot, 0, len(found))
	for _, contents := range found {
		all = append(all, s.judge(contents))
	}
	return all, err
}

// LookUp is Look without empty slots, which a crash left before their record was written. It fails
// for a slot that is foreign or unreadable.
func (s *Session) LookUp(at ...pool.Slot) (found []*Slot, err error) {
	all, err := s.Find(at...)
	for _, contents := range all {
		l := s.judge(contents)
		switch {
		case l.state == unreadable:
			return nil, l.err
		case l.recorded:
			found = append(found, l)
		case !errors.Is(l.infoErr, fs.ErrNotExist):
			return nil, fmt.Errorf("%s in pool %q: %w: move it away", l.At, s.Name, pool.ErrForeign)
		}
	}
	return found, err
}

// Scan reads every slot of the pool, ordered by path. It omits slots that vanish meanwhile.
func (s *Session) Scan() ([]*Slot, error) {
	at, err := s.List()
	if err != nil {
		return nil, err
	}
	all := make([]*Slot, 0, len(at))
	for some := range slices.Chunk(at, atOnce) {
		found, err := s.Look(some...)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// atOnce is the number of slots that one look-up of Scan reads. A slow disk has to answer in time.
const atOnce = 16

// judge determines the state of a slot.
func (s *Session) judge(is pool.Contents) *Slot {
	l := &Slot{At: is.Slot, session: s, info: is.Info, infoErr: is.InfoError, recorded: is.Record != nil, beside: is.Beside}
	there := l.infoErr == nil
	if !there && !errors.Is(l.infoErr, fs.ErrNotExist) {
		l.err = l.infoErr
	}
	switch {
	case l.recorded && l.At.Area != pool.AreaRemoving:
		l.judgeRecord(is.Record, there)
	case !l.named(), !l.recorded && (there || l.err != nil || len(l.beside) > 0):
		l.state = foreign
	case l.At.Area == pool.AreaRemoving:
		l.state = removing
	default:
		l.state = declared
	}
	return l
}

// named reports whether the slot has the name of a volume or snapshot.
func (l *Slot) named() bool {
	_, named := l.At.Ref()
	return named
}

func (l *Slot) judgeRecord(data []byte, there bool) {
	err := l.decode(data)
	switch {
	case err != nil && !l.named():
		l.state = foreign
	case err != nil:
		l.state, l.err = unreadable, err
	case l.err != nil:
		l.state = damaged
	case l.Record.State == meta.Ready && there:
		l.state = ready
	case l.Record.State == meta.Ready:
		l.state = lost
	case there:
		l.state = half
	default:
		l.state = declared
	}
}

// decode reads the record.
func (l *Slot) decode(data []byte) (err error) {
	if l.Record, err = meta.DecodeRecord(data); err != nil {
		return fmt.Errorf("%s in pool %q: %w: %w", l.At, l.session.Name, ErrUnreadable, err)
	}
	if of := pool.SlotOf(l.Record.Kind, l.Record.ID); of != l.At {
		return fmt.Errorf("%s in pool %q: %w: it is that of %s", l.At, l.session.Name, ErrUnreadable, of)
	}
	return nil
}

// Session returns the session that has read the slot.
func (l *Slot) Session() *Session { return l.session }

// IsReady reports whether the slot contains a whole volume or snapshot.
func (l *Slot) IsReady() bool { return l.state == ready }

// IsDeclared reports whether the subvolume was not made yet.
func (l *Slot) IsDeclared() bool { return l.state == declared }

// Path returns the absolute path of the subvolume, for mounts.
func (l *Slot) Path() string { return l.session.SlotPath(l.At) }

// Entry returns the record with the lineage of its subvolume. With ErrLost it returns the record
// alone. It fails for a member of a group that is not complete.
func (l *Slot) Entry() (meta.Entry, error) {
	switch {
	case l.infoErr == nil && l.Record.State == meta.Creating && l.Record.Group != (meta.Group{}):
		return meta.Entry{}, unfinished(fmt.Errorf("%s: not all members of its group %q are there yet", l.Record.Ref(), l.Record.Group.ID))
	case l.infoErr == nil:
		return l.entry(), nil
	case errors.Is(l.infoErr, fs.ErrNotExist):
		return l.entry(), l.lostError()
	}
	return meta.Entry{}, l.session.Explain(l.infoErr)
}

func (l *Slot) entry() meta.Entry {
	return meta.Entry{
		Record: l.Record, Pool: l.session.Name, PoolID: l.session.ID,
		Lineage: meta.Lineage{
			SubvolumeID: l.info.ID, UUID: l.info.UUID.String(), ParentUUID: l.info.ParentUUID.String(),
			ReceivedUUID: l.info.ReceivedUUID.String(), CreatedTransid: l.info.CreatedTransid,
		},
	}
}

// Entries returns what an index should have of a pool, also of subvolumes that cannot be read.
// unlisted are the slots without an entry that need attention: half made, or with an unreadable
// record.
func Entries(slots []*Slot) (entries []meta.Entry, unlisted []meta.Ref) {
	for _, l := range slots {
		switch l.state {
		case ready, damaged:
			entries = append(entries, l.entry())
		case half, unreadable:
			if ref, named := l.At.Ref(); named {
				unlisted = append(unlisted, ref)
			}
		}
	}
	return entries, unlisted
}

// quoted lists names for a message, at most ten.
func quoted(names []string) string {
	const most = 10
	if n := len(names); n > most {
		return fmt.Sprintf("%q and %d more", names[:most], n-most)
	}
	return fmt.Sprintf("%q", names)
}
