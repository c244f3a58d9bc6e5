package pool

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// Session is a pool that is open for one operation, which uses it from one goroutine. It has the
// methods of a Directory, gives up look-ups that take too long, and its errors say what they mean
// for a request.
type Session struct {
	*Pool
	directory Directory // nil until it is open
	// patient makes look-ups wait like steps, so that a slow commit does not stop an operation in
	// the middle.
	patient bool
	users   atomic.Int32 // how many use it beside the operation: calls that were given up
}

// Open opens the pool for one operation, which must call Close.
func (p *Pool) Open() (*Session, error) {
	s := &Session{Pool: p}
	_, err := look(s, "Open", Slot{}, p.patience.Look, func() (_ struct{}, err error) {
		s.directory, err = p.Filesystem.Open()
		return struct{}{}, err
	})
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close ends the operation. The directory stays open for as long as a call that was given up
// uses it.
func (s *Session) Close() {
	if s.users.Add(-1) < 0 && s.directory != nil {
		s.directory.Close()
	}
}

// Begin starts an operation that changes something. It fails if the filesystem is frozen, because
// the operation could not end. From then on look-ups are never given up: they may wait for a
// commit, and must not stop the operation between two steps.
func (s *Session) Begin() error {
	err := s.Thawed()
	s.patient = s.patient || err == nil
	return err
}

// failure is an error of the kernel with its meaning for a request.
type failure struct {
	meaning, cause error
	text           string
}

func (f *failure) Error() string   { return f.text }
func (f *failure) Unwrap() []error { return []error{f.meaning, f.cause} }

// Explain adds the meaning for a request to an error of the kernel in an answer of
// the pool. The methods of s do it themselves.
func (s *Session) Explain(err error) error {
	_, err = look(s, "Room", Slot{}, s.patience.Look, func() (struct{}, error) { return struct{}{}, err })
	return err
}

// explain is Explain within the call that has failed, which may wait for the disk.
func (s *Session) explain(err error) error {
	opened := s.directory != nil
	if opened {
		err = s.directory.Named(err)
	}
	var meaning error
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		meaning = ErrNoSpace
	case errors.Is(err, unix.EROFS):
		meaning = ErrReadOnly
	case errors.Is(err, unix.ETXTBSY):
		meaning = ErrSwapFile
	case errors.Is(err, unix.EIO), errors.Is(err, unix.ESTALE):
		meaning = ErrAway
	default:
		return err
	}
	text := fmt.Sprintf("pool %q: %v: %v", s.Name, meaning, err)
	if opened {
		if room, failed := s.directory.Room(); failed == nil && room.Stopped {
			text += ": " + whyReadOnly(room, "")
		}
	}
	return &failure{meaning, err, text}
}

// step runs a call that is never given up.
func (s *Session) step(method string, at Slot, fn func() error) error {
	c := &call{}
	overdue := time.AfterFunc(s.patience.Step, func() { s.giveUp(c, what{method, at}) })
	err := fn()
	if err != nil {
		err = s.explain(err)
	}
	overdue.Stop()
	if !c.CompareAndSwap(0, returned) {
		s.end()
	}
	return err
}

// Look-ups.

func (s *Session) Room() (btrfs.Room, error) {
	return look(s, "Room", Slot{}, s.patience.Look, s.directory.Room)
}

func (s *Session) Space() (btrfs.Space, error) {
	return look(s, "Space", Slot{}, s.patience.Look, s.directory.Space)
}

func (s *Session) Devices() ([]btrfs.Device, error) {
	return look(s, "Devices", Slot{}, s.patience.Look, s.directory.Devices)
}

func (s *Session) Find(slots ...Slot) ([]Contents, error) {
	return look(s, "Find", slots[0], s.patience.Look, func() ([]Contents, error) { return s.directory.Find(slots...) })
}

func (s *Session) Info(at Slot) (btrfs.SubvolumeInfo, error) {
	return look(s, "Info", at, s.patience.Look, func() (btrfs.SubvolumeInfo, error) { return s.directory.Info(at) })
}

func (s *Session) Nested(at Slot) ([]string, error) {
	return look(s, "Nested", at, s.patience.Look, func() ([]string, error) { return s.directory.Nested(at) })
}

func (s *Session) NestedUpTo(at Slot, transid uint64) ([]string, error) {
	return look(s, "NestedUpTo", at, s.patience.Look, func() ([]string, error) { return s.directory.NestedUpTo(at, transid) })
}

func (s *Session) NestedSince(from uint64) (Census, error) {
	return look(s, "NestedSince", Slot{}, s.patience.Look, func() (Census, error) { return s.directory.NestedSince(from) })
}

func (s *Session) QuotaStatus() (btrfs.QuotaStatus, error) {
	return look(s, "QuotaStatus", Slot{}, s.patience.Look, s.directory.QuotaStatus)
}

func (s *Session) Usage(subvolume uint64) (Usage, error) {
	return look(s, "Usage", Slot{}, s.patience.Look, func() (Usage, error) { return s.directory.Usage(subvolume) })
}

func (s *Session) DiskSize(at Slot) (int64, error) {
	return look(s, "DiskSize", at, s.patience.Look, func() (int64, error) { return s.directory.DiskSize(at) })
}

// Look-ups that read a whole tree, or the mount table of the node.

func (s *Session) SwapFiles(at Slot) ([]string, error) {
	return look(s, "SwapFiles", at, s.patience.Walk, func() ([]string, error) { return s.directory.SwapFiles(at) })
}

func (s *Session) List() ([]Slot, error) {
	return look(s, "List", Slot{}, s.patience.Walk, s.directory.List)
}

func (s *Session) Census() (Census, error) {
	return look(s, "Census", Slot{}, s.patience.Walk, s.directory.Census)
}

func (s *Session) Groups() (Groups, error) {
	return look(s, "Groups", Slot{}, s.patience.Walk, s.directory.Groups)
}

// Steps.

func (s *Session) Mkdir(at Slot) error {
	return s.step("Mkdir", at, func() error { return s.directory.Mkdir(at) })
}

func (s *Session) Rmdir(at Slot) error {
	return s.step("Rmdir", at, func() error { return s.directory.Rmdir(at) })
}

func (s *Session) Move(from, to Slot) error {
	return s.step("Move", from, func() error { return s.directory.Move(from, to) })
}

func (s *Session) SetRecord(at Slot, record []byte) error {
	return s.step("SetRecord", at, func() error { return s.directory.SetRecord(at, record) })
}

func (s *Session) Sync(at Slot) error {
	return s.step("Sync", at, func() error { return s.directory.Sync(at) })
}

func (s *Session) Commit() error {
	return s.step("Commit", Slot{}, s.directory.Commit)
}

func (s *Session) Create(at Slot) (info btrfs.SubvolumeInfo, err error) {
	err = s.step("Create", at, func() error { info, err = s.directory.Create(at); return err })
	return info, err
}

func (s *Session) Snapshot(from, to Slot, readOnly bool) (info btrfs.SubvolumeInfo, err error) {
	err = s.step("Snapshot", to, func() error { info, err = s.directory.Snapshot(from, to, readOnly); return err })
	return info, err
}

func (s *Session) SnapshotTogether(copies ...Copy) (infos []btrfs.SubvolumeInfo, err error) {
	err = s.step("SnapshotTogether", copies[0].To, func() error { infos, err = s.directory.SnapshotTogether(copies...); return err })
	return infos, err
}

func (s *Session) Destroy(at Slot) error {
	return s.step("Destroy", at, func() error { return s.directory.Destroy(at) })
}

func (s *Session) SyncRoot(at Slot) error {
	return s.step("SyncRoot", at, func() error { return s.directory.SyncRoot(at) })
}

func (s *Session) Apply(at Slot, p meta.Parameters) error {
	return s.step("Apply", at, func() error { return s.directory.Apply(at, p) })
}

func (s *Session) MakeDisk(at Slot, content meta.Content, size int64) error {
	return s.step("MakeDisk", at, func() error { return s.directory.MakeDisk(at, content, size) })
}

func (s *Session) GrowDisk(at Slot, size int64) error {
	return s.step("GrowDisk", at, func() error { return s.directory.GrowDisk(at, size) })
}

func (s *Session) Freeze(at Slot) (frozen bool, err error) {
	err = s.step("Freeze", at, func() error { frozen, err = s.directory.Freeze(at); return err })
	return frozen, err
}

func (s *Session) Thaw(at Slot) error {
	return s.step("Thaw", at, func() error { return s.directory.Thaw(at) })
}

func (s *Session) Rescan() error {
	return s.step("Rescan", Slot{}, s.directory.Rescan)
}

func (s *Session) SetLimit(subvolume uint64, bytes int64) error {
	return s.step("SetLimit", Slot{}, func() error { return s.directory.SetLimit(subvolume, bytes) })
}

func (s *Session) Bound(volume uint64, size int64, nested []uint64) (inside Usage, err error) {
	err = s.step("Bound", Slot{}, func() (err error) { inside, err = s.directory.Bound(volume, size, nested); return err })
	return inside, err
}

func (s *Session) LiftLimit(subvolume uint64) error {
	return s.step("LiftLimit", Slot{}, func() error { return s.directory.LiftLimit(subvolume) })
}

func (s *Session) ForgetQuota(subvolume uint64) error {
	return s.step("ForgetQuota", Slot{}, func() error { return s.directory.ForgetQuota(subvolume) })
}
