package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	library "github.com/containerd/btrfs/v2" //nolint:depguard // the library that is compared
	"golang.org/x/sync/errgroup"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// filesEach is how many files makeFiles puts into one directory.
const filesEach = 1000

// makeFiles creates files of one size with incompressible content.
func makeFiles(ctx context.Context, root string, files, size int) error {
	content := noise(size)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for first := 0; first < files; first += filesEach {
		group.Go(func() error {
			dir := filepath.Join(root, fmt.Sprint(first/filesEach))
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			for i := first; i < min(first+filesEach, files) && ctx.Err() == nil; i++ {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), content, 0o644); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	return group.Wait()
}

// volumePath returns the path of the subvolume of a volume.
func (r *rig) volumePath(volume string) string {
	return filepath.Join(r.Pool(), string(meta.Active), volume, "fs")
}

// full opens a driver with a volume, number 0, that contains a number of files.
func (b *bench) full(ctx context.Context, files, size int) (*stand, *driver, error) {
	s, err := b.open(ctx, contestant{side: sideDriver}, btrfs.QuotaNone, nil)
	if err != nil {
		return nil, nil, err
	}
	b.progress("making %d files", files)
	err = errors.Join(s.operations()[opCreate](ctx, 0), makeFiles(ctx, s.volumePath(volumeName(0)), files, size))
	if err != nil {
		return nil, nil, errors.Join(err, s.close())
	}
	return s, s.side.(*driver), nil
}

// removal compares the removal of a volume with a number of files with that by the library that
// containerd's snapshotter is built on, on one filesystem.
func removal(files, rounds int, want float64) part {
	p := part{name: fmt.Sprintf("contents/delete of %d files", files), seconds: 10 + float64(files)/200_000*(10+4*float64(rounds))}
	p.run = func(ctx context.Context, b *bench) (rows []row, err error) {
		s, d, err := b.full(ctx, files, 1)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, s.close()) }()
		path := func(round int) string { return filepath.Join(s.Pool(), cloneName(round)) }
		ours := contender{
			prepare: func(round int) error {
				return d.create(ctx, cloneName(round), testkit.FromVolume(volumeName(0)), testkit.Writer)
			},
			act: func(round int) error { return d.delete(ctx, cloneName(round)) },
		}
		peer := contender{
			prepare: func(round int) error { return btrfs.Snapshot(path(round), s.volumePath(volumeName(0)), false) },
			act:     func(round int) error { return library.SubvolDelete(path(round)) },
		}
		r := row{
			Topic: topicContents, Operation: fmt.Sprintf("delete of a volume of %d files", files), Inflight: 1, Quota: string(btrfs.QuotaNone),
			OursName: sideDriver, PeerName: sideLibrary, Want: want, X: float64(files), XName: "files",
		}
		return s.duel(ctx, b, r, rounds, ours, peer)
	}
	return p
}

// copying compares a clone with a durable copy of the same files.
func copying(files, size, rounds int) part {
	total := files * size >> 20
	p := part{name: fmt.Sprintf("contents/clone of %d MiB", total), seconds: 5 + float64(rounds*total)/50}
	p.run = func(ctx context.Context, b *bench) (rows []row, err error) {
		s, d, err := b.full(ctx, files, size)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, s.close()) }()
		ours := contender{act: func(round int) error {
			return d.create(ctx, cloneName(round), testkit.FromVolume(volumeName(0)), testkit.Writer)
		}}
		peer := contender{act: func(round int) error {
			to := filepath.Join(s.Pool(), cloneName(round))
			return errors.Join(testkit.Run(ctx, "cp", "-a", "--reflink=never", s.volumePath(volumeName(0)), to), btrfstest.Sync(s.Pool()))
		}}
		r := row{
			Topic: topicContents, Operation: fmt.Sprintf("clone of %d MiB in %d files", total, files), Inflight: 1, Quota: string(btrfs.QuotaNone),
			OursName: sideDriver, PeerName: sideCopy,
		}
		return s.duel(ctx, b, r, rounds, ours, peer)
	}
	return p
}

// contender is one of two sides that are timed in each round.
type contender struct {
	prepare func(round int) error // runs before act, not timed; may be nil
	act     func(round int) error
}

// duel times both contenders on one filesystem, in turn.
func (s *stand) duel(ctx context.Context, b *bench, r row, rounds int, both ...contender) ([]row, error) {
	times := make([][]float64, len(both))
	for round := range rounds {
		b.progress("round %d of %d", round+1, rounds)
		for _, i := range inTurn(len(both), round) {
			took, err := s.stopwatch(ctx, both[i], round)
			if err != nil {
				return nil, err
			}
			times[i] = append(times[i], took)
		}
	}
	return []row{r.compare(milliseconds, times[0], times[1])}, nil
}

// stopwatch times one round of a contender, in ms.
func (s *stand) stopwatch(ctx context.Context, c contender, round int) (float64, error) {
	if c.prepare != nil {
		if err := c.prepare(round); err != nil {
			return 0, err
		}
	}
	if err := s.settle(ctx); err != nil {
		return 0, err
	}
	begin := time.Now()
	err := c.act(round)
	return float64(time.Since(begin).Microseconds()) / 1000, err
}
