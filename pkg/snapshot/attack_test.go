package snapshot_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// These tests act as a pod: a process with the volume, without root or any capability.

// attackVariable makes the test binary run as the attacker.
const attackVariable = "BTRFS_CSI_ATTACK"

// nobody is the user of the attacker.
const nobody = 65534

// attacker is the test's end of the attacker process.
type attacker struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Scanner
}

// attacks starts a process whose working directory is a volume that it owns.
func (n *node) attacks(t *testing.T, volume string) *attacker {
	t.Helper()
	root := filepath.Join(n.path("default"), "active", volume, "fs")
	must(t, os.Chown(root, nobody, nobody))
	dir, err := os.Open(root)
	must(t, err)
	defer dir.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{attackVariable + "=1"}
	cmd.ExtraFiles = []*os.File{dir}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	a := &attacker{t: t, in: in, out: bufio.NewScanner(out)}
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	return a
}

// do makes the attacker run one command, and returns how often or how much it did.
func (a *attacker) do(words ...any) (int, error) {
	a.t.Helper()
	must(a.t, second(fmt.Fprintln(a.in, words...)))
	if !a.out.Scan() {
		a.t.Fatalf("the attacker has died of %v", words)
	}
	var count int
	var errno unix.Errno
	must(a.t, second(fmt.Sscan(a.out.Text(), &count, &errno)))
	if errno != 0 {
		return count, errno
	}
	return count, nil
}

// attack is the attacker's end. It runs the command of each line, and answers with a count and an
// errno.
func attack(in io.Reader, out io.Writer) {
	if err := unix.Fchdir(3); err != nil {
		panic(err)
	}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		words := strings.Fields(lines.Text())
		count, err := attackOnce(words[0], words[1:])
		var errno unix.Errno
		if err != nil && !errors.As(err, &errno) {
			panic(err)
		}
		fmt.Fprintln(out, count, int(errno))
	}
}

func attackOnce(what string, words []string) (int, error) {
	number := func(i int) int { n, err := strconv.Atoi(words[i]); must0(err); return n }
	switch what {
	case "nest": // name, most
		for i := range number(1) {
			if err := nest(iocSubvolCreateV2, 0, fmt.Sprint(words[0], i), 0); err != nil {
				return i, err
			}
		}
		return number(1), nil
	case "nestInto": // name, flags, groups
		return 1, nest(iocSubvolCreateV2, 0, words[0], uint64(number(1)), groupsOf(words[2:])...)
	case "copyInto": // source, name, groups
		source, err := os.Open(words[0])
		if err != nil {
			return 0, err
		}
		defer source.Close()
		return 1, nest(iocSnapCreateV2, int64(source.Fd()), words[1], 0, groupsOf(words[2:])...)
	case "write": // directory, MiB
		f, err := os.CreateTemp(words[0], "data")
		if err != nil {
			return 0, err
		}
		defer f.Close()
		for i := range number(1) {
			if _, err := f.Write(make([]byte, mib)); err != nil {
				return i, err
			}
		}
		return number(1), nil
	}
	panic(what)
}

func must0(err error) {
	if err != nil {
		panic(err)
	}
}

func groupsOf(words []string) []uint64 {
	groups := []uint64{}
	for _, word := range words {
		group, err := strconv.ParseUint(word, 10, 64)
		must0(err)
		groups = append(groups, group)
	}
	return groups
}

// qgroupInherit is struct btrfs_qgroup_inherit, with room for some groups.
type qgroupInherit struct {
	flags, count, _, _ uint64
	_                  [5]uint64 // the limits
	groups             [4]uint64
}

const (
	iocSnapCreateV2   = 1<<30 | 4096<<16 | 0x94<<8 | 23
	iocSubvolCreateV2 = 1<<30 | 4096<<16 | 0x94<<8 | 24
	subvolInherit     = 1 << 2
	inheritSetLimits  = 1 << 0
)

// nest makes a subvolume in the working directory. If groups are given, even an empty list, they
// replace the groups that it would inherit; nil does not.
func nest(request uintptr, source int64, name string, flags uint64, groups ...uint64) error {
	var args struct {
		fd             int64
		transid, flags uint64
		size           uint64
		inherit        uintptr
		_              [2]uint64
		name           [4040]byte
	}
	args.fd = source
	copy(args.name[:], name)
	inherit := qgroupInherit{flags: flags, count: uint64(len(groups))}
	copy(inherit.groups[:], groups)
	if groups != nil || flags != 0 {
		args.flags = subvolInherit
		args.size = uint64(72 + 8*len(groups))
		args.inherit = uintptr(unsafe.Pointer(&inherit))
	}
	dir, err := os.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), request, uintptr(unsafe.Pointer(&args)))
	if errno != 0 {
		return errno
	}
	return nil
}

// nested returns the ID of a subvolume nested in a volume.
func (n *node) nested(t *testing.T, volume, name string) uint64 {
	t.Helper()
	info, err := btrfs.Info(filepath.Join(n.path("default"), "active", volume, "fs", name))
	must(t, err)
	return info.ID
}

// seen waits until the driver has seen a nested subvolume.
func (n *node) seen(t *testing.T, id uint64) {
	t.Helper()
	eventually(t, func() bool {
		group, err := btrfs.QgroupOf(n.state, btrfs.NewQgroupID(0, id))
		return err == nil && group.MaxReferenced != btrfs.NoLimit
	})
}

// TestNestingIsNoWayOut: under full quota each subvolume is counted by itself, and a pod can make
// many. Between two looks of the driver it may exceed the size of its volume, but not any longer.
func TestNestingIsNoWayOut(t *testing.T) {
	t.Parallel()
	const size = 64
	prepare := func(t *testing.T) (*node, *snapshot.Engine, *attacker) {
		n := newNode(t, btrfs.QuotaFull)
		e := n.start(t)
		must(t, second(e.Prepare(t.Context(), sized("pvc", size*mib), meta.Ref{})))
		must(t, second(e.Prepare(t.Context(), sized("other", size*mib), meta.Ref{})))
		go e.Run(t.Context())
		pod := n.attacks(t, "pvc")
		return n, e, pod
	}
	// after checks what is left for other volumes, for the pool, and for the volume without
	// nested ones.
	after := func(t *testing.T, n *node, e *snapshot.Engine) {
		ctx := t.Context()
		must(t, n.fill("other", size/2*mib))
		findings, err := e.Plan(ctx)
		if must(t, err); len(findings) > 0 {
			t.Errorf("found %v", findings)
		}
		must(t, e.Remove(ctx, meta.Volume("pvc")))
		must(t, second(e.Prepare(ctx, sized("pvc", size*mib), meta.Ref{})))
		must(t, n.fill("pvc", size/2*mib))
	}

	t.Run("data", func(t *testing.T) {
		t.Parallel()
		n, e, pod := prepare(t)
		const step = 16
		written := 0
		for i := 0; ; i++ {
			name := fmt.Sprint("grow", i)
			_, err := pod.do("nest", name, 1)
			if errors.Is(err, unix.EDQUOT) {
				break
			}
			must(t, err)
			count, err := pod.do("write", name+"0", step)
			if written += count; written > size+step {
				t.Fatalf("wrote %d MiB into a volume of %d MiB, %v", written, size, err)
			}
			n.seen(t, n.nested(t, "pvc", name+"0"))
		}
		usage, err := e.Usage(t.Context(), meta.Volume("pvc"))
		if must(t, err); usage.Used < int64(written)*mib/2 {
			t.Errorf("%+v is reported for %d MiB", usage, written)
		}
		for _, into := range []string{".", "grow00"} {
			if count, err := pod.do("write", into, step); count > 1 || !errors.Is(err, unix.EDQUOT) {
				t.Errorf("wrote %d MiB more into %s: %v", count, into, err)
			}
		}
		after(t, n, e)
	})

	t.Run("metadata", func(t *testing.T) {
		t.Parallel()
		n, e, pod := prepare(t)
		// Each subvolume takes at least a node of 16 KiB.
		const most, step = size << 10 / 16, 512
		made := 0
		for i := 0; ; i++ {
			name := fmt.Sprint("many", i, "-")
			count, err := pod.do("nest", name, step)
			if made += count; made > most+step {
				t.Fatalf("made %d, %v", made, err)
			}
			if errors.Is(err, unix.EDQUOT) {
				break
			}
			must(t, err)
			n.seen(t, n.nested(t, "pvc", fmt.Sprint(name, step-1)))
		}
		after(t, n, e)
	})

	t.Run("snapshots", func(t *testing.T) {
		t.Parallel()
		n, e, pod := prepare(t)
		must(t, second(pod.do("nest", "source", 1)))
		must(t, second(pod.do("write", "source0", size/4)))
		made := 0
		for ; ; made++ {
			name := fmt.Sprint("copy", made)
			_, err := pod.do("copyInto", "source0", name)
			if errors.Is(err, unix.EDQUOT) {
				break
			}
			if must(t, err); made > 3 {
				t.Fatalf("took %d snapshots of %d MiB", made, size/4)
			}
			n.settle(t)
			eventually(t, func() bool {
				usage, err := e.Usage(t.Context(), meta.Volume("pvc"))
				return err == nil && usage.Used >= int64(made+2)*size/4*mib
			})
		}
		after(t, n, e)
	})

	t.Run("limits", func(t *testing.T) {
		t.Parallel()
		n, e, pod := prepare(t)
		if _, err := pod.do("nestInto", "stolen", 0, uint64(btrfs.NewQgroupID(0, 256))); !errors.Is(err, unix.EINVAL) {
			t.Errorf("into a group of another's: %v", err)
		}
		must(t, second(pod.do("nestInto", "free", inheritSetLimits)))
		n.seen(t, n.nested(t, "pvc", "free"))
		count, err := pod.do("write", "free", 2*size)
		if count > size || !errors.Is(err, unix.EDQUOT) {
			t.Errorf("wrote %d MiB, %v", count, err)
		}
		after(t, n, e)
	})
}

// TestLooksAtNestedAreRare: pods determine what a look at nested subvolumes costs. However many
// they nest, the looks take at most one eleventh of the time.
func TestLooksAtNestedAreRare(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const cost, watched = 2 * time.Second, time.Hour
		pod := &nestingPod{cost: cost}
		host := pooltest.Wrap(pooltest.NewHost(btrfs.QuotaFull), func(_ string, d pool.Directory) pool.Directory { return &nestingPool{d, pod} })
		e := open(t, host, filepath.Join(t.TempDir(), "index.db"))
		entry, err := e.Prepare(t.Context(), sized("pvc", mib), meta.Ref{})
		must(t, err)
		pod.volume.Store(entry.SubvolumeID)
		go e.Run(t.Context())
		time.Sleep(watched)
		const most = int(watched/(11*cost)) + 1
		if looks := int(pod.looks.Load()); looks > most || looks < most/2 {
			t.Errorf("%d looks of %s each in %s, want at most %d, and not half as few", looks, cost, watched, most)
		}
	})
}

// nestingPod nests in a volume all the time. Each look at what is nested takes as long as cost.
type nestingPod struct {
	cost   time.Duration
	volume atomic.Uint64
	looks  atomic.Int64
}

type nestingPool struct {
	pool.Directory
	pod *nestingPod
}

func (p *nestingPool) Census() (pool.Census, error) {
	census, err := p.Directory.Census()
	if volume := p.pod.volume.Load(); volume != 0 {
		census.Nested = map[uint64]uint64{1 << 20: volume}
	}
	return census, err
}

func (p *nestingPool) NestedSince(uint64) (pool.Census, error) { return p.Census() }

func (p *nestingPool) Bound(volume uint64, size int64, nested []uint64) (pool.Usage, error) {
	p.pod.looks.Add(1)
	time.Sleep(p.pod.cost)
	return p.Directory.Bound(volume, size, nested)
}

// TestNoOtherGroup: under simple quota a pod chooses the groups of a nested subvolume, such as
// those of other volumes, of a volume that is gone, or none. The driver corrects that.
func TestNoOtherGroup(t *testing.T) {
	t.Parallel()
	const size, step = 64, 8
	n := newNode(t, btrfs.QuotaSimple)
	e := n.start(t)
	ctx := t.Context()
	groups := map[string]btrfs.QgroupID{}
	for _, name := range []string{"pvc", "other", "gone"} {
		entry, err := e.Prepare(ctx, sized(name, size*mib), meta.Ref{})
		must(t, err)
		groups[name] = btrfs.NewQgroupID(1, entry.SubvolumeID)
	}
	must(t, n.fill("gone", 4*mib))
	must(t, second(e.Commit(ctx, snapshot.Spec{Name: "snap"}, "gone")))
	must(t, e.Remove(ctx, meta.Volume("gone")))
	admin := btrfs.NewQgroupID(1, 100000)
	must(t, btrfs.CreateQgroup(n.state, admin))
	pod := n.attacks(t, "pvc")

	// The driver has not seen this subvolume yet. A volume that is gone has no space to give.
	must(t, second(pod.do("nestInto", "dead", 0, uint64(groups["gone"]))))
	if count, err := pod.do("write", "dead", step); count > 0 || !errors.Is(err, unix.EDQUOT) {
		t.Errorf("wrote %d MiB into what a volume that is gone has left: %v", count, err)
	}
	own, other := uint64(groups["pvc"]), uint64(groups["other"])
	inherits := map[string][]any{
		"stolen": {"nestInto", "stolen", 0, other},
		"both":   {"nestInto", "both", 0, own, other},
		"none":   {"nestInto", "none", inheritSetLimits},
		"admins": {"nestInto", "admins", 0, uint64(admin)},
	}
	for name, inherit := range inherits {
		must(t, second(pod.do(inherit...)))
		must(t, second(pod.do("write", name, step)))
	}
	must(t, second(pod.do("copyInto", "stolen", "copy", other)))
	must(t, second(pod.do("write", "copy", step)))

	go e.Run(ctx)
	for _, name := range []string{"dead", "stolen", "both", "none", "admins", "copy"} {
		member := btrfs.NewQgroupID(0, n.nested(t, "pvc", name))
		eventually(t, func() bool {
			parents, err := btrfs.QgroupParents(n.state, []btrfs.QgroupID{member})
			return err == nil && slices.Equal(parents[member], []btrfs.QgroupID{groups["pvc"]})
		})
	}
	n.settle(t)
	used := func(id btrfs.QgroupID) uint64 {
		group, err := btrfs.QgroupOf(n.state, id)
		must(t, err)
		return group.Referenced
	}
	if have := used(groups["pvc"]); have < 5*step*mib || have > (5*step+2)*mib {
		t.Errorf("the pod's own is charged %d", have)
	}
	if others, admins := used(groups["other"]), used(admin); others > mib || admins > 0 {
		t.Errorf("others are charged %d and %d", others, admins)
	}
	if status, err := btrfs.Quota(n.state); err != nil || status.Inconsistent {
		t.Errorf("quota is %+v, %v", status, err)
	}
	must(t, n.fill("other", size/2*mib))
	count, err := pod.do("write", "stolen", size)
	if count > size-5*step || !errors.Is(err, unix.EDQUOT) {
		t.Errorf("wrote %d MiB more: %v", count, err)
	}
	must(t, e.Remove(ctx, meta.Volume("pvc")))
}
