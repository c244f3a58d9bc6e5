package pool_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
)

func active(id string) pool.Slot { return pool.Slot{Area: "active", Name: id} }

func second[T any](_ T, err error) error { return err }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantSilent(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, pool.ErrSilent) {
		t.Errorf("got error %v, wanted %v", err, pool.ErrSilent)
	}
}

// within opens a pool in which each call may take d.
func within(t *testing.T, fs pool.Filesystem, d time.Duration) *pool.Session {
	t.Helper()
	var s *pool.Session
	btrfstest.Eventually(t, "the pool is open", func() (open bool) {
		var err error
		s, err = pool.New("guarded", fs, pool.Patience{Look: d, Walk: d, Step: d, Thaw: d}).Open()
		return err == nil
	})
	return s
}

// TestPatienceEnds: a slow look-up is given up; a slow step is not, but makes the pool silent.
// When all calls have returned, the pool answers.
func TestPatienceEnds(t *testing.T) {
	t.Parallel()
	look := func(s *pool.Session) error { return second(s.Find(active("pvc"))) }
	for method, do := range map[string]func(*pool.Session) error{
		"Find":   look,
		"Groups": func(s *pool.Session) error { return second(s.Groups()) },
		"Mkdir":  func(s *pool.Session) error { return s.Mkdir(active("pvc")) },
	} {
		fs := pooltest.NewFilesystem(btrfs.QuotaFull)
		t.Cleanup(fs.Answer)
		guarded := within(t, fs, time.Millisecond)
		fs.Silence(method)
		ended := make(chan error, 1)
		go func() { ended <- do(guarded) }()
		btrfstest.Eventually(t, method+" waits", func() bool { return fs.Waiting(method) == 1 })
		if method != "Mkdir" {
			btrfstest.Returns(t, method, func() { wantSilent(t, <-ended) })
		}
		btrfstest.Eventually(t, "it is silent with "+method, func() bool { return errors.Is(look(guarded), pool.ErrSilent) })
		if n := fs.Waiting(method); n != 1 || len(ended) > 0 {
			t.Errorf("%d calls of %s wait, wanted one", n, method)
		}
		fs.Answer()
		if method == "Mkdir" {
			btrfstest.Returns(t, method, func() { must(t, <-ended) })
		}
		btrfstest.Eventually(t, "it answers after "+method, func() bool { return look(guarded) == nil })
	}
}

// TestSilenceIsBounded: many requests never have more than MostAsking threads wait.
func TestSilenceIsBounded(t *testing.T) {
	t.Parallel()
	fs := pooltest.NewFilesystem(btrfs.QuotaFull)
	defer fs.Answer()
	guarded := within(t, fs, time.Second)
	fs.Silence(pooltest.AllMethods)
	var all sync.WaitGroup
	for range 4 * pool.MostAsking {
		all.Go(func() { wantSilent(t, second(guarded.Find(active("there")))) })
	}
	btrfstest.Returns(t, "requests", all.Wait)
	if n := fs.Waiting(pooltest.AllMethods); n == 0 || n > pool.MostAsking {
		t.Errorf("%d calls wait", n)
	}
}
