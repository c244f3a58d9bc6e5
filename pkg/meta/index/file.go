package index

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// openTimeout is how long Open waits for another process to unlock the file.
const openTimeout = 2 * time.Second

// errUntrusted means that the file must be replaced. It is internal to the package.
var errUntrusted = errors.New("index cannot be trusted")

// file is the bbolt file of an index. If bbolt panics on a damaged file, the current
// operation fails with errUntrusted and an empty file replaces the damaged one.
type file struct {
	path     string
	renewing sync.Mutex
	db       atomic.Pointer[bolt.DB]
}

// openFile opens the file. It replaces an untrusted file; renewed is then the reason.
func openFile(path string) (f *file, renewed string, err error) {
	db, err := openTrusted(path)
	if errors.Is(err, errUntrusted) && !noRoom(err) {
		renewed = err.Error()
		if err := removeFile(path); err != nil {
			return nil, "", fmt.Errorf("replace index: %w", err)
		}
		db, err = openVerified(path)
	}
	if err != nil {
		return nil, "", err
	}
	if err := sealOpen(path); err != nil {
		return nil, "", errors.Join(err, db.Close())
	}
	f = &file{path: path}
	f.db.Store(db)
	return f, renewed, nil
}

// openMemory opens an empty index in memory. Its path is empty.
func openMemory() (*file, error) {
	db, err := openVerified("")
	if err != nil {
		return nil, err
	}
	f := &file{}
	f.db.Store(db)
	return f, nil
}

func noRoom(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// memfd replaces os.OpenFile by a file in memory.
func memfd(string, int, os.FileMode) (*os.File, error) {
	fd, err := unix.MemfdCreate("index", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "index"), nil
}

func (f *file) close() error { return f.db.Load().Close() }

func (f *file) update(fn func(*bolt.Tx) error) error {
	return f.guard(func(db *bolt.DB) error { return db.Update(fn) })
}

func (f *file) view(fn func(*bolt.Tx) error) error {
	return f.guard(func(db *bolt.DB) error { return db.View(fn) })
}

func (f *file) guard(use func(*bolt.DB) error) (err error) {
	db := f.db.Load()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = errors.Join(fmt.Errorf("%w: %v", errUntrusted, r), f.renew(db))
		}
	}()
	return use(db)
}

// renew replaces a damaged file by an empty one. The old bbolt.DB is abandoned, because its
// locks are in an unknown state.
func (f *file) renew(damaged *bolt.DB) error {
	f.renewing.Lock()
	defer f.renewing.Unlock()
	if f.db.Load() != damaged {
		return nil // another goroutine did
	}
	if err := removeFile(f.path); err != nil {
		return err
	}
	db, err := openVerified(f.path)
	if err != nil {
		return err
	}
	f.db.Store(db)
	return nil
}

// removeFile removes a file. Unlike os.Remove it never removes a directory.
func removeFile(path string) error {
	if err := unix.Unlink(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// openTrusted opens a file that is unchanged since its last use.
func openTrusted(path string) (*bolt.DB, error) {
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: there was none", errUntrusted)
	}
	if err := checkSeal(path); err != nil {
		return nil, fmt.Errorf("%w: %w", errUntrusted, err)
	}
	return openVerified(path)
}

// openVerified opens the file and reads all of it. An empty path opens an empty file in
// memory. It catches a panic of bbolt or a SIGBUS from damage that the seal does not show,
// before anything depends on the file.
func openVerified(path string) (db *bolt.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			if db != nil {
				_ = db.Close()
			}
			db, err = nil, fmt.Errorf("%w: %v", errUntrusted, r)
		}
	}()
	openFile := os.OpenFile
	if path == "" {
		openFile = memfd
	}
	db, err = bolt.Open(path, 0o600, &bolt.Options{
		OpenFile: openFile,
		Timeout:  openTimeout,
		NoSync:   true, // the file is a cache of the ledger
		// The free list is in the file. Without it bbolt would search free pages in a
		// goroutine whose panic cannot be caught.
		FreelistType: bolt.FreelistMapType,
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("in use by another process: %w", err)
	case errors.Is(err, os.ErrPermission), errors.Is(err, unix.EISDIR):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errUntrusted, err)
	}
	if err := errors.Join(db.View(checkValues), initialise(db)); err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("%w: %w", errUntrusted, err)
	}
	return db, nil
}
