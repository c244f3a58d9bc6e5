package components

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func keyOf(text string) hash.Hash {
	key := sha256.New()
	key.Write([]byte(text))
	return key
}

func filled(dir string) error { return os.WriteFile(filepath.Join(dir, "file"), nil, 0o644) }

// names returns the names of the entries of the cache.
func (c cache) names(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	return names
}

func TestEntryIsMadeOnce(t *testing.T) {
	c := cache{t.TempDir(), io.Discard}
	var made atomic.Int32
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			dir, err := c.entry(t.Context(), "some", keyOf("a"), func(dir string) error {
				made.Add(1)
				time.Sleep(10 * time.Millisecond)
				return filled(dir)
			})
			if err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(dir, "file")); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if made.Load() != 1 {
		t.Errorf("made %d times", made.Load())
	}
	if _, err := c.entry(t.Context(), "some", keyOf("b"), filled); err != nil {
		t.Fatal(err)
	}
	if names := c.names(t); len(names) != 2 {
		t.Errorf("two keys made %q", names)
	}
}

func TestEntryFails(t *testing.T) {
	c := cache{t.TempDir(), io.Discard}
	failure := errors.New("no compiler")
	_, err := c.entry(t.Context(), "some", keyOf("a"), func(dir string) error {
		return errors.Join(filled(dir), failure)
	})
	if !errors.Is(err, failure) {
		t.Fatalf("got %v", err)
	}
	if names := c.names(t); len(names) != 0 {
		t.Errorf("left %q", names)
	}
	if _, err := c.entry(t.Context(), "some", keyOf("a"), filled); err != nil {
		t.Error(err)
	}
}

func TestEntryWaitsForTheLock(t *testing.T) {
	var log strings.Builder
	c := cache{t.TempDir(), &log}
	unlock, err := c.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.entry(ctx, "some", keyOf("a"), filled); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if !strings.HasPrefix(log.String(), "waiting for another") {
		t.Errorf("logged %q", log.String())
	}
	unlock()
	if _, err := c.entry(t.Context(), "some", keyOf("a"), filled); err != nil {
		t.Error(err)
	}
}

func TestPrune(t *testing.T) {
	c := cache{t.TempDir(), io.Discard}
	long := time.Now().Add(-unusedFor - time.Hour)
	for _, name := range []string{"of-use", "old"} {
		dir, err := c.entry(t.Context(), name, keyOf(name), filled)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(dir, long, long); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(c.dir, unfinished+"1"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"of-use", "new"} {
		if _, err := c.entry(t.Context(), name, keyOf(name), filled); err != nil {
			t.Fatal(err)
		}
	}
	names := strings.Join(c.names(t), " ")
	if strings.Contains(names, "old") || strings.Contains(names, unfinished) || !strings.Contains(names, "of-use") {
		t.Errorf("left %s", names)
	}
}
