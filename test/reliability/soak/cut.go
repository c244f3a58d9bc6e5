package soak

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/btrfs-csi/btrfs-csi/test/reliability/model"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/node"

	bolt "go.etcd.io/bbolt"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
)

// cut simulates a power cut: it copies the pool's image, and starts another driver on the copy. The original
// continues afterwards.
func (l *leg) cut(ctx context.Context) (err error) {
	if l.closed == "" { // most kinds of damage need a closed index
		if err := l.restart(ctx); err != nil {
			return err
		}
	}
	l.work(ctx, 400*time.Millisecond)
	again := l.random.IntN(4) == 0
	if again {
		// Repeat the requests that a kill cut short. Their answers have to be durable.
		if err := l.again(ctx); err != nil {
			return err
		}
	}
	l.cuts++
	l.report.Cuts++
	image := filepath.Join(filepath.Dir(l.node.Image), fmt.Sprintf("cut-%d.img", l.cuts))
	torn := filepath.Join(l.node.Dir, "torn.db")
	during, when, err := l.instantCopy(ctx, image, torn, again)
	l.Shut()
	if err != nil {
		return err
	}

	n := node.New(l.node.Binary, filepath.Join(filepath.Dir(l.node.Dir), fmt.Sprintf("cut-%d", l.cuts)), image, l.node.Quota)
	n.Logged = l.node.Logged
	defer func() { err = errors.Join(err, n.Close()) }()
	kind := indexKinds[l.report.Cuts%len(indexKinds)]
	when = fmt.Sprintf("after power cut %d at %d to %d, %s, with %s", l.report.Cuts, during.From, during.To, when, kind.name)
	if err := boot(ctx, n, kind, torn, l.closed); err != nil {
		return fmt.Errorf("%s: %w", when, err)
	}
	t, err := n.Check(ctx, l.Expect(during))
	if err = errors.Join(err, n.CheckMounts(nil)); err != nil {
		return fmt.Errorf("%s: %w\nits driver's last words:\n%s", when, err, n.LastWords())
	}
	l.report.AtCuts.Add(t)
	if l.report.Cuts%3 == 0 { // 3 does not divide the number of kinds of an index
		if err := empty(ctx, n); err != nil {
			return fmt.Errorf("%s, everything removed: %w", when, err)
		}
	}
	return nil
}

// empty removes all volumes and snapshots, and checks that nothing is left.
func empty(ctx context.Context, n *node.Node) error {
	c := n.Driver.Load()
	all, err := node.List(ctx, c)
	if err != nil {
		return err
	}
	for _, l := range all { // try both kinds for each ID; removing an absent one is no error
		_, err := c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: l.ID})
		if err == nil {
			_, err = c.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: l.ID})
		}
		if err != nil {
			return err
		}
	}
	if _, err := n.Check(ctx, nil); err != nil {
		return err
	}
	return n.CheckQuota(ctx)
}

// again kills the driver and starts another one.
func (l *leg) again(ctx context.Context) error {
	if err := l.node.Kill(); err != nil {
		return err
	}
	l.report.Kills++
	l.Shut()
	return l.node.Serve(ctx)
}

// instantCopy copies the image at a random instant during the load, or right after an acknowledgement while few
// others work, whose commits could make it durable by chance. again reports whether to repeat the requests that
// were cut short first. instantCopy returns the instant.
func (l *leg) instantCopy(ctx context.Context, image, index string, again bool) (model.Window, string, error) {
	workers := []int{1, 1, 2, l.options.Workers}[l.random.IntN(4)]
	d := l.cuts % (len(model.Deeds) + 1)
	if d == len(model.Deeds) {
		l.work(ctx, 40*time.Millisecond)
		return l.copyNow(image, index, "in the midst of the load")
	}
	if !again {
		l.Drain()
	}
	moment := l.Await(model.Deeds[d])
	defer close(moment.Passed)
	l.Open(workers)
	select {
	case <-moment.Came:
	case <-time.After(2 * time.Second):
	case <-ctx.Done():
		return model.Window{}, "", ctx.Err()
	}
	return l.copyNow(image, index, fmt.Sprintf("%d at work, something %s", workers, model.Deeds[d]))
}

func (l *leg) copyNow(image, index, when string) (model.Window, string, error) {
	during := model.Window{From: l.Here()}
	began := time.Now()
	err := reflink(l.node.Image, image)
	during.To = l.Here()
	l.report.LongestCut = max(l.report.LongestCut, time.Since(began))
	if err == nil {
		err = btrfstest.Rename(image) // the original stays mounted
	}
	return during, when, errors.Join(err, copyIndex(l.node.Index(), index))
}

// boot starts a driver on the copy after a power cut.
func boot(ctx context.Context, n *node.Node, kind indexKind, torn, closed string) error {
	if err := n.Open(ctx); err != nil {
		return err
	}
	if err := kind.place(n.Index(), torn, closed); err != nil {
		return err
	}
	return n.Serve(ctx)
}

// indexKind is a state of the index after a power cut. The index is never synced. torn is a copy that was made
// while a driver wrote the index, closed a copy of a closed one.
type indexKind struct {
	name  string
	place func(index, torn, closed string) error
}

var indexKinds = []indexKind{
	{"no index", func(string, string, string) error { return nil }},
	{"an index that was in use", func(index, torn, _ string) error {
		return errors.Join(copyIndex(torn, index), reboot(index))
	}},
	{"an index that was written in part", func(index, torn, _ string) error {
		return errors.Join(copyIndex(torn, index), reboot(index), blank(index))
	}},
	{"an old index that was closed", func(index, _, closed string) error { return copyIndex(closed, index) }},
	{"an old index that was cut short", func(index, _, closed string) error {
		if err := copyIndex(closed, index); err != nil {
			return err
		}
		return os.Truncate(index, 5000)
	}},
	{"the seal of another index", func(index, torn, closed string) error {
		if err := errors.Join(copyIndex(torn, index), copyIndex(closed, index+".closed")); err != nil {
			return err
		}
		return os.Rename(index+".closed.seal", index+".seal")
	}},
	{"an index of another version", func(index, _, closed string) error {
		return errors.Join(copyIndex(closed, index), bump(index), seal(index))
	}},
	{"noise for an index", func(index, _, closed string) error {
		if err := copyIndex(closed, index); err != nil {
			return err
		}
		noise := strings.Repeat("\x00\xff\x13\x37noise", 4096)
		return os.WriteFile(index, []byte(noise), 0o600)
	}},
}

// copyIndex copies an index and its seal, if they exist.
func copyIndex(from, to string) error {
	for _, suffix := range []string{"", ".seal"} {
		data, err := os.ReadFile(from + suffix)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(to+suffix, data, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// headPages is the size in bytes of the pages of bbolt that refer to all others.
const headPages = 2 * 4096

// blank zeroes all but the head pages of an index, as if they had not been written yet.
func blank(index string) error {
	st, err := os.Stat(index)
	if err != nil {
		return err
	}
	return errors.Join(os.Truncate(index, headPages), os.Truncate(index, st.Size()))
}

// bump gives an index the next version.
func bump(index string) error {
	db, err := bolt.Open(index, 0o600, nil)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		key := []byte("version")
		b := tx.Bucket([]byte("meta"))
		if b == nil || len(b.Get(key)) != 1 {
			return fmt.Errorf("%s has no version", index)
		}
		return b.Put(key, []byte{b.Get(key)[0] + 1})
	})
	return errors.Join(err, db.Close())
}

// seal seals an index as closed.
func seal(index string) error {
	data, err := os.ReadFile(index)
	if err != nil {
		return err
	}
	return os.WriteFile(index+".seal", fmt.Appendf(nil, `{"sha256":"%x"}`, sha256.Sum256(data)), 0o600)
}

// reboot changes the seal of an open index to that of an earlier boot.
func reboot(index string) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	seal, err := os.ReadFile(index + ".seal")
	if err != nil {
		return err
	}
	earlier := strings.ReplaceAll(string(seal), strings.TrimSpace(string(boot)), "00000000-0000-4000-8000-000000000000")
	if earlier == string(seal) {
		return fmt.Errorf("the seal %q is not of this boot", seal)
	}
	return os.WriteFile(index+".seal", []byte(earlier), 0o600)
}
