package mount

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
)

// readers are both ways to read the table. The kernel must support both.
var readers = map[string]reader{"system calls": syscalls{}, "mountinfo": procfs{}}

func TestMain(m *testing.M) {
	if os.Getenv(aloneVariable) == "1" {
		os.Exit(m.Run())
	}
	os.Exit(btrfstest.Main(m.Run))
}

// aloneVariable marks a test binary that runs a single test.
const aloneVariable = "BTRFS_CSI_TEST_ALONE"

// alone runs the test again in a process with a mount namespace of its own, and returns
// true there. Mounts of the test end with that process.
func alone(t *testing.T) bool {
	t.Helper()
	btrfstest.RequireRoot(t)
	if os.Getenv(aloneVariable) == "1" {
		return true
	}
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), aloneVariable+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

// inEmptyNamespace is alone with only an empty / and /proc mounted. Mounts of the machine
// cannot change the table there: removing a directory in another namespace would also
// remove mounts on it in this one.
func inEmptyNamespace(t *testing.T) bool {
	t.Helper()
	if !alone(t) {
		return false
	}
	root := os.TempDir()
	must(t, unix.Mount("none", root, "tmpfs", 0, ""))
	bind(t, "/proc", mkdir(t, filepath.Join(root, "proc")))
	must(t, os.Chdir(root))
	must(t, unix.PivotRoot(".", "."))
	must(t, unix.Unmount(".", unix.MNT_DETACH))
	must(t, os.Chdir("/"))
	return true
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mkdir(t testing.TB, path string) string {
	t.Helper()
	must(t, os.MkdirAll(path, 0o755))
	return path
}

// workspace returns an empty directory. The end of the test removes it and all mounts in
// it.
func workspace(t *testing.T) string {
	t.Helper()
	btrfstest.RequireRoot(t)
	dir := t.TempDir()
	must(t, unix.Mount("none", dir, "tmpfs", 0, ""))
	must(t, unix.Mount("", dir, "", unix.MS_PRIVATE, "")) // shared mounts cannot be moved
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// filesystem mounts a btrfs and returns its mount point. The end of the test unmounts it
// and all mounts in it.
func filesystem(t *testing.T) string {
	t.Helper()
	top := btrfstest.Mount(t)
	t.Cleanup(func() { must(t, unix.Unmount(top, unix.MNT_DETACH)) })
	return top
}

func bind(t testing.TB, from, to string) {
	t.Helper()
	must(t, unix.Mount(from, to, "", unix.MS_BIND, ""))
}

func command(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// strange has unusual names that users may give to directories.
var strange = []string{
	"a b", "a\tb", "a\nb", `a\b`, `a\040b`, "#", "ä", "\xff\xfe", "a\vb\f\r", "\u00a0", " - ", " (deleted)", "(unreachable)", "-\v-", strings.Repeat("n", 255),
}

// tangle makes mounts of all kinds below a directory.
func tangle(t *testing.T, dir string) {
	for i, name := range strange {
		from, to := mkdir(t, filepath.Join(dir, "from", name, "sub")), mkdir(t, filepath.Join(dir, "to", name))
		bind(t, from, to)
		bind(t, filepath.Dir(from), mkdir(t, filepath.Join(dir, "parents", name)))
		if i%2 == 0 {
			must(t, os.Remove(from))
		}
	}
	file := filepath.Join(dir, "file\n")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "on"), nil, 0o600))
	bind(t, file, filepath.Join(dir, "on"))
	stack := mkdir(t, filepath.Join(dir, "stack"))
	for range 3 {
		must(t, unix.Mount("none", stack, "tmpfs", 0, ""))
		mkdir(t, filepath.Join(stack, "below"))
	}
	bindDeep(t, dir)
	moved := mkdir(t, filepath.Join(dir, "moved"))
	must(t, unix.Mount(filepath.Join(dir, "to", strange[1]), moved, "", unix.MS_MOVE, ""))
	must(t, os.Rename(filepath.Join(dir, "to"), filepath.Join(dir, "renamed")))
	must(t, unix.Unmount(stack, unix.MNT_DETACH))
}

// bindDeep mounts a directory below itself, at a path longer than PATH_MAX.
func bindDeep(t *testing.T, dir string) {
	t.Helper()
	at, err := unix.Open(dir, pathOnly, 0)
	must(t, err)
	for range 100 {
		name := strings.Repeat("d", 200)
		must(t, unix.Mkdirat(at, name, 0o755))
		next, err := unix.Openat(at, name, pathOnly, 0)
		must(t, err)
		must(t, unix.Close(at))
		at = next
	}
	defer unix.Close(at)
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	must(t, err)
	defer unix.Close(tree)
	must(t, unix.MoveMount(tree, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// tangleBtrfs is tangle with subvolumes. It removes some of them.
func tangleBtrfs(t *testing.T, top string) {
	for _, name := range strange {
		volume := filepath.Join(top, name)
		command(t, "btrfs", "subvolume", "create", volume)
		mkdir(t, filepath.Join(volume, "sub"))
		bind(t, volume, mkdir(t, filepath.Join(top, "at", name)))
		bind(t, filepath.Join(volume, "sub"), mkdir(t, filepath.Join(top, "subs", name)))
		if len(name)%2 == 0 {
			command(t, "btrfs", "subvolume", "delete", volume)
		}
	}
}

// TestReadersAgree compares both readers in a namespace with mounts of all kinds.
func TestReadersAgree(t *testing.T) {
	if !alone(t) {
		return
	}
	top, dir := filesystem(t), workspace(t)
	tangleBtrfs(t, top)
	tangle(t, dir)
	want := 2*len(strange) + 2*len(strange)
	compareReaders(t, want)
	for i := range 5000 {
		bind(t, dir, mkdir(t, filepath.Join(dir, "many", fmt.Sprint(i))))
	}
	compareReaders(t, want+5000)
	root := mkdir(t, filepath.Join(dir, "root"))
	bind(t, "/proc", mkdir(t, filepath.Join(root, "proc")))
	bind(t, top, mkdir(t, filepath.Join(root, "btrfs")))
	bind(t, dir, mkdir(t, filepath.Join(root, "loop")))
	changeRoot(t, root)
	compareReaders(t, 3)
	if got := read(t, syscalls{}); got[0].Point != "/proc" || len(got) != 3 {
		t.Errorf("outside of the root directory, or missing in it: %q", got)
	}
	if m, _, err := Of(open(t, "/")); err == nil {
		t.Errorf("the mount of a root directory that is no mount is %+v", m)
	}
	if m, err := Inside("/"); err == nil {
		t.Errorf("mounts inside of a root directory that is no mount are %+v", m)
	}
}

// changeRoot changes the root directory until the test ends.
func changeRoot(t *testing.T, root string) {
	t.Helper()
	before := open(t, "/")
	must(t, unix.Chroot(root))
	must(t, os.Chdir("/"))
	t.Cleanup(func() {
		must(t, unix.Fchdir(int(before.Fd())))
		must(t, unix.Chroot("."))
	})
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, pathOnly, 0)
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func read(t *testing.T, r reader) []Info {
	t.Helper()
	all, err := r.all(nil)
	must(t, err)
	return all
}

// undisturbed repeats read until the table does not change meanwhile. In other namespaces
// of the machine, directories with mounts of this namespace may be removed.
func undisturbed(t *testing.T, read func()) {
	t.Helper()
	w, err := NewWatch()
	must(t, err)
	defer w.Close()
	for changed := true; changed; {
		read()
		changed, err = w.Changed(0)
		must(t, err)
	}
}

func compareReaders(t *testing.T, atLeast int) {
	t.Helper()
	var got, want []Info
	undisturbed(t, func() { got, want = read(t, syscalls{}), read(t, procfs{}) })
	if len(want) < atLeast || len(got) != len(want) {
		t.Fatalf("system calls: %d mounts, mountinfo: %d, want %d at least", len(got), len(want), atLeast)
	}
	for i := range want {
		a, b := got[i], want[i]
		a.id, b.id = 0, 0
		if a != b {
			t.Errorf("mount %d:\nsystem calls %q\nmountinfo    %q", i, fmt.Sprintf("%+v", a), fmt.Sprintf("%+v", b))
		}
	}
	for name, r := range readers {
		var all, again []Info
		undisturbed(t, func() {
			var err error
			all = read(t, r)
			again, err = r.again(all)
			must(t, err)
		})
		if !slices.Equal(again, all) {
			t.Errorf("%s: again other mounts than before", name)
		}
		for keep := range 7 { // some are known, some known ones are gone
			var known, more []Info
			for i, m := range all {
				if i%7 <= keep {
					known = append(known, m)
				}
			}
			undisturbed(t, func() {
				var err error
				all = read(t, r)
				more, err = r.all(known)
				must(t, err)
			})
			if !slices.Equal(more, all) {
				t.Errorf("%s: other mounts where some are known", name)
			}
		}
	}
}

// TestNoMountIsMissed reads the table while goroutines mount, unmount, move and rename.
// Each answer contains every permanent mount.
func TestNoMountIsMissed(t *testing.T) {
	dir := workspace(t)
	const stable = 300
	for i := range stable {
		must(t, unix.Mount("none", mkdir(t, filepath.Join(dir, "stable", fmt.Sprint(i))), "tmpfs", 0, ""))
		bind(t, dir, mkdir(t, filepath.Join(dir, "other", fmt.Sprint(i))))
	}
	ctx, changes := t.Context(), atomic.Int64{}
	stop := make(chan struct{})
	done := make(chan error, 1)
	go func() { done <- churn(dir, stop, &changes) }()
	for name, r := range readers {
		for begin := changes.Load(); changes.Load() < begin+2000 && ctx.Err() == nil; {
			n := 0
			for _, m := range read(t, r) {
				if strings.HasPrefix(m.Point, dir+"/stable/") {
					n++
				}
			}
			if n != stable {
				t.Fatalf("%s: %d mounts, want %d", name, n, stable)
			}
		}
	}
	close(stop)
	must(t, <-done)
}

// churn changes the table until stop is closed.
func churn(dir string, stop chan struct{}, changes *atomic.Int64) error {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return nil
		default:
		}
		other := filepath.Join(dir, "other", fmt.Sprint(i%300))
		next := filepath.Join(dir, "other", fmt.Sprint((i+1)%300))
		err := errors.Join(
			unix.Unmount(other, unix.MNT_DETACH), unix.Mount(dir, other, "", unix.MS_BIND, ""),
			unix.Mount(other, next, "", unix.MS_MOVE, ""), unix.Mount(next, other, "", unix.MS_MOVE, ""))
		if err != nil {
			return err
		}
		changes.Add(4)
	}
}

// TestTableFollows: the cached table shows each of many mounts and unmounts.
func TestTableFollows(t *testing.T) {
	dir := mkdir(t, filepath.Join(workspace(t), "at"))
	for name, r := range readers {
		kept := &table{reader: r}
		at := func() int {
			all, err := kept.list()
			must(t, err)
			return len(slices.DeleteFunc(slices.Clone(all), func(m Info) bool { return m.Point != dir }))
		}
		for range 300 {
			must(t, unix.Mount("none", dir, "tmpfs", 0, ""))
			if n := at(); n != 1 {
				t.Fatalf("%s: mounted once, seen %d times", name, n)
			}
			must(t, btrfstest.Unmount(dir))
			if n := at(); n != 0 {
				t.Fatalf("%s: unmounted, seen %d times", name, n)
			}
		}
	}
}

// counting counts how often the whole table is read. It returns err if set.
type counting struct {
	reader
	reads int
	err   error
}

func (c *counting) all(known []Info) ([]Info, error) {
	c.reads++
	if c.err != nil {
		return nil, c.err
	}
	return c.reader.all(nil)
}

// TestTableIsReadOncePerChange also covers a failed read, which has consumed the report of
// the change.
func TestTableIsReadOncePerChange(t *testing.T) {
	if !inEmptyNamespace(t) {
		return
	}
	dir := mkdir(t, "/at")
	c := &counting{reader: fastest()}
	kept := &table{reader: c}
	for want := 1; want < 10; want++ {
		for range 5 {
			_, err := kept.list()
			must(t, err)
		}
		if c.reads != want {
			t.Fatalf("read %d times, want %d", c.reads, want)
		}
		must(t, unix.Mount("none", dir, "tmpfs", 0, ""))
	}
	c.err = unix.EIO
	for range 3 {
		if _, err := kept.list(); !errors.Is(err, unix.EIO) {
			t.Fatalf("got %v", err)
		}
	}
	c.err = nil
	all, err := kept.list()
	must(t, err)
	if n := len(slices.DeleteFunc(slices.Clone(all), func(m Info) bool { return m.Point != dir })); n != 9 {
		t.Errorf("%d mounts, want 9", n)
	}
}

// TestInside: mounts are found by their root, at any mount point and through any mount.
func TestInside(t *testing.T) {
	top := filesystem(t)
	base := mkdir(t, filepath.Join(top, "base"))
	volume := filepath.Join(base, "v")
	command(t, "btrfs", "subvolume", "create", volume)
	command(t, "btrfs", "subvolume", "create", volume+"x")
	command(t, "btrfs", "subvolume", "create", filepath.Join(mkdir(t, filepath.Join(volume, "in")), "v"))
	mkdir(t, filepath.Join(volume, "gone"))
	dir := workspace(t)
	at := func(name string) string { return mkdir(t, filepath.Join(dir, name)) }
	bind(t, base, at("base"))
	bind(t, filepath.Join(at("base"), "v"), at("volume"))
	bind(t, volume+"x", at("sibling"))
	bind(t, filepath.Join(volume, "in", "v"), at("nested"))
	bind(t, filepath.Join(volume, "gone"), at("gone"))
	must(t, os.Remove(filepath.Join(volume, "gone")))
	bind(t, top, at("moved"))
	other := filesystem(t)
	bind(t, mkdir(t, filepath.Join(other, "base", "v")), at("other"))
	must(t, os.Symlink(top, filepath.Join(dir, "link")))

	check := func(path string, want map[string]string) {
		t.Helper()
		for name, r := range readers {
			found, err := (&table{reader: r}).inside(path)
			got := map[string]string{}
			for _, m := range found {
				got[filepath.Base(m.Point)] = m.Rel
			}
			if err != nil || len(got) != len(want) || len(found) != len(want) {
				t.Errorf("%s: inside %s: got %q, %v, want %q", name, path, got, err, want)
			}
			for at, rel := range want {
				if had, ok := got[at]; !ok || had != rel {
					t.Errorf("%s: inside %s: at %s %q, want %q", name, path, at, had, rel)
				}
			}
		}
	}
	inVolume := map[string]string{"volume": "", "nested": "/in/v", "gone": "/gone"}
	for _, path := range []string{volume, at("base") + "/v", at("volume"), at("moved") + "/base/v", filepath.Join(dir, "link/base/v")} {
		check(path, inVolume)
	}
	check(filepath.Join(volume, "in", "v"), map[string]string{"nested": ""})
	check(volume+"x", map[string]string{"sibling": ""})
	check(base, map[string]string{"base": "", "volume": "/v", "sibling": "/vx", "nested": "/v/in/v", "gone": "/v/gone"})
	check(top, map[string]string{
		filepath.Base(top): "", "moved": "", "base": "/base", "volume": "/base/v", "sibling": "/base/vx", "nested": "/base/v/in/v", "gone": "/base/v/gone",
	})
	check(at("other"), map[string]string{"other": ""})

	// The kernel does not report a rename. The paths must be current all the same.
	_, err := Inside(volume)
	must(t, err)
	must(t, os.Rename(base, filepath.Join(top, "renamed")))
	volume = filepath.Join(top, "renamed", "v")
	check(volume, inVolume)
	found, err := Inside(volume)
	if err != nil || len(found) != 3 {
		t.Errorf("after a rename: %v, %v", found, err)
	}
	if _, err := Inside(filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an absent directory: %v", err)
	}
	must(t, os.Symlink(volume, filepath.Join(dir, "last")))
	if _, err := Inside(filepath.Join(dir, "last")); err == nil {
		t.Error("a symbolic link is taken for a directory")
	}
}

// TestWithin: files are found through any mount, also below one that another filesystem
// covers. That filesystem is not asked.
func TestWithin(t *testing.T) {
	top := filesystem(t)
	must(t, unix.Mount("", top, "", unix.MS_PRIVATE, "")) // mounts here do not propagate to its binds
	volume := mkdir(t, filepath.Join(top, "base", "v"))
	dir := workspace(t)
	at := func(name string) string { return mkdir(t, filepath.Join(dir, name)) }
	bind(t, filepath.Join(top, "base"), at("base"))
	bind(t, volume, at("volume"))
	bind(t, mkdir(t, filepath.Join(volume, "in")), at("in"))
	bind(t, mkdir(t, filepath.Join(top, "base", "vx")), at("sibling"))
	bind(t, at("sibling"), filepath.Join(volume, "in")) // hides the directory through this mount
	must(t, unix.Mount("none", at("volume"), "tmpfs", 0, ""))
	want := map[string]string{
		volume + "/f": "f", at("base") + "/v/a/f": "a/f", dir + "/volume/f": "f", at("in") + "/f": "in/f",
	}
	files := []string{
		volume, volume + "x/f", volume + "/in/f", at("base") + "/vx/f", at("sibling") + "/f", dir + "/f", dir + "/v/f", "/f", "f", "",
	}
	for file := range want {
		files = append(files, file)
	}
	for name, r := range readers {
		got, err := (&table{reader: r}).within(volume, files)
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
		}
		all, err := (&table{reader: r}).within(top, []string{top + "/f", at("sibling") + "/f"})
		if err != nil || all[top+"/f"] != "f" || all[dir+"/sibling/f"] != "base/vx/f" {
			t.Errorf("%s: got %q, %v", name, all, err)
		}
	}
}

// FuzzInner proves that a mount counts for a directory if its root is that directory or
// lies below it, compared by components, and that Rel is the rest.
func FuzzInner(f *testing.F) {
	for _, paths := range [][2]string{
		{"/", "/"}, {"/", "/a"}, {"/a", "/a"}, {"/a", "/ab"}, {"/a", "/a/b"}, {"/a/b", "/a"}, {"/a", "/a\n/b"}, {"/active/x/fs", "/active/x/fs/active/x/fs"},
		{"/@", "/@broken/pools"}, {"/a", "/a/b//deleted"}, {"/a", "/a//deleted"}, {"/ a", "/ a/ (deleted)"},
	} {
		f.Add(paths[0], paths[1])
	}
	f.Fuzz(func(t *testing.T, dir, root string) {
		live := strings.TrimSuffix(root, deletedSuffix)
		if path.Clean(dir) != dir || path.Clean(live) != live || !path.IsAbs(dir) || !path.IsAbs(live) {
			return // not a path that the kernel returns
		}
		m := newInfo(1, 8, 1, "btrfs", root, "/at")
		found := directory{m.Device, dir}.inner([]Info{m})
		above, names := strings.Split(strings.Trim(dir, "/"), "/"), strings.Split(strings.Trim(live, "/"), "/")
		if dir == "/" {
			above = nil
		}
		want := len(names) >= len(above) && slices.Equal(names[:len(above)], above)
		if want != (len(found) == 1) || want && path.Join(dir, found[0].Rel) != live {
			t.Errorf("%q in %q: want %v, got %+v", root, dir, want, found)
		}
		if other := (directory{m.Device + 1, dir}).inner([]Info{m}); len(other) > 0 {
			t.Errorf("of another filesystem: %+v", other)
		}
	})
}

// FuzzReadStatus proves that no answer of the kernel makes the process panic.
func FuzzReadStatus(f *testing.F) {
	f.Add([]byte(nil), uint32(512), uint64(wanted), uint32(0), uint32(0))
	f.Add([]byte("btrfs\x00/root\x00/point\x00"), uint32(530), uint64(wanted), uint32(6), uint32(12))
	f.Add([]byte("btrfs"), uint32(517), uint64(wanted), uint32(5), uint32(1<<31))
	f.Fuzz(func(t *testing.T, texts []byte, size uint32, mask uint64, root, point uint32) {
		status := mountStatus{size: size, mask: mask, root: root, point: point}
		buffer := make([]uint64, (512+len(texts)+7)/8)
		bytes := unsafe.Slice((*byte)(unsafe.Pointer(&buffer[0])), 8*len(buffer))
		copy(bytes, unsafe.Slice((*byte)(unsafe.Pointer(&status)), 512))
		copy(bytes[512:], texts)
		read, err := readStatus(bytes)
		if fits := size >= 512 && int(size) <= len(bytes); fits != (err == nil) {
			t.Errorf("%d bytes of %d: got %+v, %v", size, len(bytes), read, err)
		}
		if err == nil {
			read.info()
		}
	})
}

// renaming renames a directory between two reads, left times.
type renaming struct {
	reader
	a, b string
	left int
}

func (r *renaming) again(mounts []Info) ([]Info, error) {
	if r.left > 0 {
		if err := os.Rename(r.a, r.b); err != nil {
			return nil, err
		}
		r.a, r.b, r.left = r.b, r.a, r.left-1
	}
	return r.reader.again(mounts)
}

// TestInsideWhileRenamed: the answer is correct or an error, and never an empty list.
func TestInsideWhileRenamed(t *testing.T) {
	top := filesystem(t)
	mkdir(t, filepath.Join(top, "a", "v"))
	bind(t, filepath.Join(top, "a", "v"), mkdir(t, filepath.Join(top, "to")))
	f := open(t, filepath.Join(top, "a", "v"))
	for name, r := range readers {
		for _, times := range []int{1, attempts - 1} {
			r := &renaming{reader: r, a: filepath.Join(top, "a"), b: filepath.Join(top, "b"), left: times}
			found, err := (&table{reader: r}).inside(procPath(f) + "/.")
			if err != nil || len(found) != 1 || found[0].Rel != "" {
				t.Errorf("%s: renamed %d times: got %+v, %v", name, times, found, err)
			}
			if r.a == filepath.Join(top, "b") {
				must(t, os.Rename(r.a, r.b))
			}
		}
		r := &renaming{reader: r, a: filepath.Join(top, "a"), b: filepath.Join(top, "b"), left: attempts}
		if found, err := (&table{reader: r}).inside(procPath(f) + "/."); err == nil {
			t.Errorf("%s: renamed all the time: got %+v", name, found)
		}
	}
}

func TestIsPoint(t *testing.T) {
	dir := workspace(t)
	for _, name := range strange {
		at := mkdir(t, filepath.Join(dir, name))
		wantPoint(t, at, false)
		must(t, unix.Mount("none", at, "tmpfs", 0, ""))
		wantPoint(t, at, true)
		wantPoint(t, mkdir(t, filepath.Join(at, "below")), false)
		link := filepath.Join(mkdir(t, filepath.Join(dir, "links")), name)
		must(t, os.Symlink(at, link))
		wantPoint(t, link, false)
		must(t, unix.Unmount(at, unix.MNT_DETACH))
		wantPoint(t, at, false)
	}
	if _, err := IsPoint(filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an absent directory: %v", err)
	}
}

func wantPoint(t *testing.T, path string, want bool) {
	t.Helper()
	if is, err := IsPoint(path); is != want || err != nil {
		t.Errorf("%q: got %v, %v", path, is, err)
	}
}

// TestSilence: a blocked question times out with an error. No other question runs until it
// returns.
func TestSilence(t *testing.T) {
	var overdue atomic.Int64
	release := make(chan struct{})
	silent := func() (int, error) { <-release; return 1, nil }
	never := func() (int, error) { t.Error("asked while another question waits"); return 0, nil }
	if _, err := askFor(time.Millisecond, &overdue, silent); !errors.Is(err, ErrSilent) {
		t.Errorf("got %v", err)
	}
	if _, err := askFor(time.Hour, &overdue, never); !errors.Is(err, ErrSilent) {
		t.Errorf("got %v", err)
	}
	close(release)
	for overdue.Load() > 0 {
		time.Sleep(time.Millisecond)
	}
	if n, err := askFor(time.Hour, &overdue, silent); n != 1 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if _, err := askFor(time.Hour, &overdue, func() (int, error) { return 0, unix.EIO }); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v", err)
	}
}

// TestWatch: a change is reported once, also one from before the wait.
func TestWatch(t *testing.T) {
	if !inEmptyNamespace(t) {
		return
	}
	dir := mkdir(t, "/at")
	w, err := NewWatch()
	must(t, err)
	want := func(within time.Duration, want bool) {
		t.Helper()
		if changed, err := w.Changed(within); changed != want || err != nil {
			t.Errorf("got %v, %v", changed, err)
		}
	}
	want(0, false)
	must(t, unix.Mount("none", dir, "tmpfs", 0, ""))
	want(0, true)
	want(10*time.Millisecond, false)
	waiting := make(chan struct{})
	go func() {
		defer close(waiting)
		want(time.Minute, true)
	}()
	must(t, btrfstest.Unmount(dir))
	<-waiting
	must(t, w.Close())
}

// TestOptions: both readers return the options of the filesystem through any of its mounts.
func TestOptions(t *testing.T) {
	dir := workspace(t)
	must(t, unix.Mount("none", mkdir(t, filepath.Join(dir, "of")), "tmpfs", 0, "size=1m,mode=700"))
	bind(t, filepath.Join(dir, "of"), mkdir(t, filepath.Join(dir, "bound")))
	for name, r := range readers {
		for _, at := range []string{"of", "bound"} {
			options, err := r.options(int(open(t, filepath.Join(dir, at)).Fd()))
			must(t, err)
			for _, want := range []string{"size=1024k", "mode=700"} {
				if !slices.Contains(options, want) {
					t.Errorf("%s, %s: options %q, wanted %s among them", name, at, options, want)
				}
			}
		}
	}
}
