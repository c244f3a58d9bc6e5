package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

var triesEach = unit{"tries", lower}

const (
	opGroup      = "group of snapshots"
	opGroupTries = "tries for a group"
)

// mostTries is the aim for a group of manyMembers, as a median.
const mostTries, manyMembers = 3, 16

// groupsGrow measures how long a group of more and more volumes takes, and how often all its snapshots
// are taken until they share a transaction. Each volume is written to meanwhile.
func groupsGrow(quota btrfs.QuotaMode, rounds int, counts ...int) part {
	p := part{name: fmt.Sprintf("growth/groups/%s", quota), seconds: float64(rounds * len(counts))}
	p.run = func(ctx context.Context, b *bench) (rows []row, err error) {
		took, tries := points{}, points{}
		for _, n := range counts {
			if err := b.groupsOf(ctx, n, quota, rounds, took, tries); err != nil {
				return nil, err
			}
		}
		r := row{Topic: topicGrowth, Operation: opGroup, Quota: string(quota), OursName: sideEngine, XName: "members"}
		rows = r.curve(milliseconds, took)
		r.Operation = opGroupTries
		for _, next := range r.curve(triesEach, tries) {
			if next.X == manyMembers {
				next.Want = next.Peer / mostTries
			}
			rows = append(rows, next)
		}
		return rows, nil
	}
	return p
}

// groupsOf takes groups of n volumes.
func (b *bench) groupsOf(ctx context.Context, n int, quota btrfs.QuotaMode, rounds int, took, tries points) (err error) {
	r, err := newRig(ctx, b.dir, quota)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	ctx = klog.NewContext(ctx, klog.Logger{}) // silent
	var taken atomic.Int64
	e, err := newEngine(ctx, r, func(s pooltest.Step, do func() error) error {
		if s.Method == "SnapshotTogether" {
			taken.Add(1)
		}
		return do()
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	volumes := make([]string, n)
	for i := range volumes {
		volumes[i] = volumeName(i)
		if err := e.prepare(ctx, volumes[i], meta.Ref{}); err != nil {
			return err
		}
	}
	stop, err := e.write(ctx, volumes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	for k := range rounds {
		b.progress("%d members, %d of %d", n, k, rounds)
		taken.Store(0)
		begin := time.Now()
		if err := e.group(ctx, fmt.Sprintf("group-%d", k), volumes); err != nil {
			return err
		}
		took.add(n, float64(time.Since(begin).Microseconds())/1000)
		tries.add(n, float64(taken.Load()))
		for i := n - 1; i >= 0; i-- {
			if err := e.Remove(ctx, meta.Snapshot(meta.MemberName(fmt.Sprintf("group-%d", k), i))); err != nil {
				return err
			}
		}
	}
	return nil
}

// group takes a group, again if its snapshots did not meet in the tries of one request.
func (e *engine) group(ctx context.Context, name string, volumes []string) error {
	for {
		_, err := e.CommitGroup(ctx, snapshot.Spec{Name: name}, volumes)
		if !errors.Is(err, snapshot.ErrApart) {
			return err
		}
	}
}

// write writes into each volume, 16 KiB at a time, and syncs every eighth write, until stop is called.
func (e *engine) write(ctx context.Context, volumes []string) (stop func() error, err error) {
	const block, blocks = 16 << 10, 2048
	end := make(chan struct{})
	var writers sync.WaitGroup
	errs := make([]error, len(volumes))
	stop = func() error {
		close(end)
		writers.Wait()
		return errors.Join(errs...)
	}
	for i, id := range volumes {
		mounts, err := e.Mounts(ctx, id)
		if err != nil {
			return nil, errors.Join(err, stop())
		}
		f, err := os.Create(dataIn(mounts.Source))
		if err != nil {
			return nil, errors.Join(err, stop())
		}
		writers.Go(func() {
			defer f.Close()
			for k := int64(0); errs[i] == nil; k++ {
				select {
				case <-end:
					return
				default:
				}
				if _, errs[i] = f.WriteAt(make([]byte, block), k%blocks*block); errs[i] == nil && k%8 == 7 {
					errs[i] = f.Sync()
				}
			}
		})
	}
	return stop, nil
}
