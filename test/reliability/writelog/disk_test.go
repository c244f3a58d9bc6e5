package writelog

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(btrfstest.Main(m.Run))
}

func no(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newDisk returns a disk of so many pages. Each byte of a page is 'a' plus its number.
func newDisk(t *testing.T, pages int) *Disk {
	btrfstest.RequireRoot(t)
	var image []byte
	for i := range pages {
		image = append(image, page('a'+byte(i))...)
	}
	path := filepath.Join(t.TempDir(), "image")
	no(t, os.WriteFile(path, image, 0o600))
	d, err := newServer(t).Open(path)
	no(t, err)
	return d
}

func newServer(t *testing.T) *Server {
	s, err := Start(t.TempDir())
	no(t, err)
	t.Cleanup(func() { no(t, s.Stop()) })
	return s
}

func page(with byte) []byte { return bytes.Repeat([]byte{with}, Page) }

func open(t *testing.T, d *Disk) *os.File {
	f, err := os.OpenFile(d.Path(), os.O_RDWR, 0)
	no(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// content returns the first byte of each page, and fails if one is torn.
func content(t *testing.T, d *Disk, pages int) string {
	t.Helper()
	f := open(t, d)
	data := make([]byte, pages*Page)
	n, err := f.ReadAt(data, 0)
	if n != len(data) {
		t.Fatalf("read %d bytes: %v", n, err)
	}
	var text []byte
	for i := range pages {
		one := data[i*Page : (i+1)*Page]
		if !bytes.Equal(one, page(one[0])) {
			t.Errorf("page %d is torn", i)
		}
		text = append(text, one[0])
	}
	return string(text)
}

// TestLogAndStates writes, flushes and discards, and restores every state.
func TestLogAndStates(t *testing.T) {
	d := newDisk(t, 4)
	f := open(t, d)
	write := func(number int64, with ...byte) {
		var data []byte
		for _, b := range with {
			data = append(data, page(b)...)
		}
		_, err := f.WriteAt(data, number*Page)
		no(t, err)
	}
	write(0, 'P')
	no(t, f.Sync())
	write(1, 'Q', 'R')
	write(1, 'S')
	no(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 3*Page, Page))
	log, err := d.Log()
	no(t, err)
	want := []Entry{{Write, 0, Page}, {Kind: Flush}, {Write, Page, 2 * Page}, {Write, Page, Page}, {Zero, 3 * Page, Page}}
	if !slices.Equal(log, want) {
		t.Fatalf("got the log\n%s, want\n%s", Excerpt(log, 0, len(log)), Excerpt(want, 0, len(want)))
	}
	if length, err := d.Length(); err != nil || length != len(want) {
		t.Errorf("got the length %d: %v", length, err)
	}
	if got := content(t, d, 4); got != "PSR\x00" {
		t.Errorf("it contains %q", got)
	}
	for want, state := range map[string]State{
		"abcd":    {},
		"Pbcd":    {Durable: 2},
		"PQRd":    {Durable: 3},
		"PSRd":    {Durable: 4},
		"PSR\x00": {Durable: 5},
		"abRd":    {Kept: map[int64]int{2: 2}},
		"PQc\x00": {Durable: 2, Kept: map[int64]int{1: 2, 3: 4}},
		"PbR\x00": {Durable: 2, Kept: map[int64]int{1: below, 2: 2, 3: 4}},
	} {
		restored, err := d.Restore(state)
		no(t, err)
		if got := content(t, restored, 4); got != want {
			t.Errorf("%+v contains %q, want %q", state, got, want)
		}
	}
}

// TestStateOfAState checks that writes to a restored disk are only in its own log.
func TestStateOfAState(t *testing.T) {
	d := newDisk(t, 3)
	_, err := open(t, d).WriteAt(page('P'), 0)
	no(t, err)
	second, err := d.Restore(State{Durable: 1})
	no(t, err)
	_, err = open(t, second).WriteAt(page('Q'), Page)
	no(t, err)
	third, err := second.Restore(State{Kept: map[int64]int{1: 0}})
	no(t, err)
	no(t, second.Drop())
	if got := content(t, third, 3); got != "PQc" {
		t.Errorf("the third contains %q", got)
	}
	if got := content(t, d, 3); got != "Pbc" {
		t.Errorf("the first contains %q", got)
	}
	if _, err := os.Stat(second.Path()); err == nil {
		t.Error("a disk that was dropped is there")
	}
}

// TestReads checks that Reads leaves out pages that were written before.
func TestReads(t *testing.T) {
	d := newDisk(t, 5)
	f := open(t, d)
	_, err := f.WriteAt(page('P'), 0)
	no(t, err)
	_, err = f.WriteAt([]byte("part of a page"), 3*Page+100) // the disk reads the rest of the page
	no(t, err)
	_, err = f.ReadAt(make([]byte, Page+1), 0)
	no(t, err)
	reads, err := d.Reads()
	no(t, err)
	slices.Sort(reads)
	if !slices.Equal(reads, []int64{1, 3}) {
		t.Errorf("got %v", reads)
	}
	data := make([]byte, 3*Page)
	_, err = f.ReadAt(data, 2*Page)
	no(t, err)
	if want := slices.Concat(page('c'), page('d'), page('e')); !bytes.Equal(slices.Replace(want, Page+100, Page+114, []byte("part of a page")...), data) {
		t.Error("the rest of a page that was written in part is another")
	}
}

// TestFlushesOfBtrfs checks the log of a commit: the new blocks, a flush, the superblock, and a flush. The
// last two are a FUA write on a disk without FUA.
func TestFlushesOfBtrfs(t *testing.T) {
	btrfstest.RequireRoot(t)
	image := filepath.Join(t.TempDir(), "image")
	no(t, testkit.Loop{File: image}.Make(t.Context(), 256<<20, "-m", "single"))
	s := newServer(t)
	d, err := s.Open(image)
	no(t, err)
	mnt := t.TempDir()
	no(t, testkit.Loop{File: d.Path()}.Mount(t.Context(), mnt))
	t.Cleanup(func() { btrfstest.UnmountAll(t, mnt) })
	for range 3 {
		no(t, os.WriteFile(filepath.Join(mnt, "file"), []byte("content"), 0o600))
		before, err := d.Length()
		no(t, err)
		no(t, btrfstest.Sync(mnt))
		log, err := d.Log()
		no(t, err)
		const superblock = 64 << 10
		super := slices.IndexFunc(log[before:], func(e Entry) bool { return e.Kind == Write && e.Offset == superblock }) + before
		if super < before+2 || log[super-1].Kind != Flush || log[len(log)-1].Kind != Flush {
			t.Errorf("a commit is\n%s", Excerpt(log, before, len(log)))
		}
	}
}

// TestServerDies checks that nothing waits for the disks of a dead server.
func TestServerDies(t *testing.T) {
	btrfstest.RequireRoot(t)
	image := filepath.Join(t.TempDir(), "image")
	no(t, testkit.Loop{File: image}.Make(t.Context(), 256<<20))
	s, err := Start(t.TempDir())
	no(t, err)
	d, err := s.Open(image)
	no(t, err)
	mnt := t.TempDir()
	no(t, testkit.Loop{File: d.Path()}.Mount(t.Context(), mnt))
	no(t, os.WriteFile(filepath.Join(mnt, "file"), []byte("content"), 0o600))
	no(t, s.child.Process.Kill())
	btrfstest.Returns(t, "sync", func() {
		if btrfstest.Sync(mnt) == nil {
			t.Error("synced without a disk")
		}
	})
	btrfstest.Returns(t, "unmount", func() { btrfstest.UnmountAll(t, mnt) })
	if err := s.Stop(); err == nil {
		t.Error("got no error from a server that was killed")
	}
	if _, err := d.Length(); err == nil {
		t.Error("got an answer of a server that was killed")
	}
}
