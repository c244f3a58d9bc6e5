package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
)

const (
	topicOperations = "operations"
	topicCommits    = "commits"
	topicCalls      = "system calls"
	topicGrowth     = "growth"
	topicContents   = "contents"
	topicData       = "data path"
)

// part returns a part that runs a contest. Its estimated time is twice the limit of its operations,
// for preparation and cleaning up.
func (c contest) part(name string) part {
	each := float64(len(c.operations)) * c.limit.time.Seconds()
	return part{name: name, seconds: float64(c.rounds*len(c.contestants)) * each, run: c.run}
}

// The sides of the growth parts: the driver alone, or with the ioctls.
var alone, besideRaw = []string{sideDriver}, []string{sideDriver, sideRawSeparate}

func wants(ratio float64, operations ...string) map[string]float64 {
	w := map[string]float64{}
	for _, name := range operations {
		w[name] = ratio
	}
	return w
}

// quickParts are the parts with an aim. They take five minutes.
func quickParts() []part {
	return []part{
		contest{
			topic: topicOperations, inflight: 64, quota: btrfs.QuotaNone, rounds: 5, limit: limit{512, time.Second},
			operations:  []string{opCreate, opSnapshot, opClone, opDelete},
			contestants: []contestant{{side: sideDriver}, {side: sideContainerd}, {side: sideEngine}, {side: sideRawSeparate}},
			pairs: []pair{
				{0, 1, wantManyAtOnce},
				{2, 3, wants(0.8, opCreate, opSnapshot, opClone, opDelete)},
			},
		}.part("operations/64/none"),
		contest{
			topic: topicOperations, inflight: 1, quota: btrfs.QuotaNone, rounds: 5, limit: limit{256, time.Second},
			operations:  []string{opCreate, opSnapshot, opClone, opDelete},
			contestants: []contestant{{side: sideDriver}, {side: sideContainerd}},
			pairs:       []pair{{0, 1, wants(1.5, opSnapshot, opClone, opDelete)}},
		}.part("operations/1/none"),
		contest{
			topic: topicOperations, inflight: 64, quota: btrfs.QuotaFull, rounds: 5, limit: limit{512, time.Second},
			operations:  []string{opCreate, opSnapshot, opClone, opDelete},
			contestants: []contestant{{side: sideDriver}, {side: sideContainerd}},
			pairs:       []pair{{0, 1, wants(3, opSnapshot, opClone, opDelete)}},
		}.part("operations/64/full"),
		commits(btrfs.QuotaNone, 2),
		volumesGrow(btrfs.QuotaNone, 64, 5, alone, wants(0.7, opSnapshot), []string{opCreate, opSnapshot}, 10, 10_000),
		volumesGrow(btrfs.QuotaFull, 1, 3, alone, wants(0.9, opStats), []string{opCreate, opStats}, 10, 10_000),
		groupsGrow(btrfs.QuotaFull, 15, 2, 4, 8, 16, 32),
		removal(200_000, 3, 100),
		copying(1000, 64<<10, 3),
		dataPath{
			quota: btrfs.QuotaFull, loads: []load{randomRead, randomWrite, syncedWrite}, places: []string{placeVolume, placeSubvolume},
			rounds: 5, want: 0.97,
		}.part(),
	}
}

// operationsOfALife are all operations, in an order in which each finds what it needs.
var operationsOfALife = []string{
	opCreate, opMounts, opStats, opList, opExpand, opSnapshot, opClone, opRestore, opView, opDelete, opDeleteSnapshot,
}

// fullParts are all parts. They take about an hour.
func fullParts() (parts []part) {
	all := []btrfs.QuotaMode{btrfs.QuotaNone, btrfs.QuotaSimple, btrfs.QuotaFull}
	for _, quota := range all {
		for _, inflight := range []int{1, 4, 16, 64} {
			parts = append(parts, beside(quota, inflight))
		}
	}
	for _, quota := range all {
		parts = append(parts, commits(quota, 2))
	}
	parts = append(parts, systemCalls())
	for _, quota := range all {
		for _, existing := range []int{1_000, 10_000} {
			parts = append(parts, amongMany(quota, existing))
		}
		parts = append(parts, volumesGrow(quota, 64, 3, besideRaw, wants(0.7, opSnapshot), []string{opCreate, opSnapshot, opClone, opDelete}, 10, 1_000, 10_000))
		parts = append(parts, volumesGrow(quota, 1, 3, besideRaw, wants(0.9, opStats), []string{opCreate, opStats, opList, opSnapshot, opClone, opDelete}, 10, 100, 1_000, 10_000))
		parts = append(parts, processGrows(quota, 3, 10, 100, 1_000, 10_000))
		parts = append(parts, groupsGrow(quota, 25, 2, 4, 8, 16, 32))
		parts = append(parts, snapshotsGrow(quota, 10, 30, 100, 200, 400, 1000), lineageGrows(quota, 10, 30, 100, 300, 1000))
	}
	for _, files := range []int{1_000, 10_000, 100_000, 200_000, 1_000_000} {
		parts = append(parts, removal(files, 3, map[int]float64{200_000: 100}[files]))
	}
	parts = append(parts, copying(1000, 4<<10, 3), copying(1000, 256<<10, 3))
	for _, quota := range all {
		for _, snapshots := range []int{0, 100, 400} {
			parts = append(parts, reading(quota, snapshots).part())
		}
	}
	return parts
}

// beside compares all sides with each other, on a filesystem without existing volumes.
func beside(quota btrfs.QuotaMode, inflight int) part {
	name := fmt.Sprintf("operations/%d/%s", inflight, quota)
	c := contest{
		topic: topicOperations, inflight: inflight, quota: quota, rounds: 3, limit: limit{1024, 500 * time.Millisecond}, operations: operationsOfALife,
		contestants: []contestant{{side: sideDriver}, {side: sideContainerd}, {side: sideEngine}, {side: sideRawSeparate}, {side: sideRawFlat}, {side: sideAdapter}},
		pairs:       []pair{{ours: 0, peer: 1}, {ours: 2, peer: 3}, {ours: 2, peer: 4}, {ours: 5, peer: 1}, {ours: 0, peer: 2}, {ours: 2, peer: 1}},
	}
	switch {
	case inflight == 64 && quota == btrfs.QuotaNone:
		c.pairs[0].want = wantManyAtOnce
		c.pairs[1].want = wants(0.8, opCreate, opSnapshot, opClone, opDelete)
	case inflight == 64 && quota == btrfs.QuotaFull:
		c.pairs[0].want = wants(3, opSnapshot, opClone, opDelete)
	case inflight == 1 && quota == btrfs.QuotaNone:
		c.pairs[0].want = wants(1.5, opSnapshot, opClone, opDelete)
	default:
		return c.part(name)
	}
	c.rounds = 5 // a row with an aim must not depend on one round
	return c.part(name)
}

var wantManyAtOnce = map[string]float64{opCreate: 5, opSnapshot: 10, opClone: 10, opDelete: 10}

// amongMany compares the driver with containerd beside many existing volumes.
func amongMany(quota btrfs.QuotaMode, existing int) part {
	return contest{
		topic: topicOperations, inflight: 64, quota: quota, rounds: 3, limit: limit{512, 500 * time.Millisecond}, operations: operationsOfALife,
		contestants: []contestant{{sideDriver, existing}, {sideContainerd, existing}},
		pairs:       []pair{{ours: 0, peer: 1}},
	}.part(fmt.Sprintf("operations/64/%s/%d", quota, existing))
}

// reading returns the data path with all loads.
func reading(quota btrfs.QuotaMode, snapshots int) dataPath {
	d := dataPath{
		quota: quota, snapshots: snapshots, places: []string{placeVolume, placeSubvolume}, rounds: 3, want: 0.97,
		loads: []load{sequentialRead, randomRead, sequentialWrite, randomWrite, syncedWrite},
	}
	if snapshots == 0 {
		d.rounds = 5
		d.places = append(d.places, placeDirectory) // a directory cannot have snapshots
	}
	return d
}

// commits counts the commits of one operation at a time. The mount options keep the kernel from
// committing by itself meanwhile.
func commits(quota btrfs.QuotaMode, rounds int) part {
	c := contest{
		topic: topicCommits, inflight: 1, quota: quota, rounds: rounds, limit: limit{32, time.Second},
		operations:  []string{opCreate, opExpand, opSnapshot, opClone, opRestore, opView, opDelete, opDeleteSnapshot},
		contestants: []contestant{{side: sideDriver}},
		options:     []string{"commit=300"},
	}
	p := c.part("commits/" + string(quota))
	p.run = func(ctx context.Context, b *bench) ([]row, error) {
		all, err := c.results(ctx, b)
		if err != nil {
			return nil, err
		}
		return c.commitRows(all[0]), nil
	}
	return p
}

// commitRows compares the commits of each operation with one.
func (c contest) commitRows(found results) (rows []row) {
	for _, name := range c.operations {
		r := c.row(name, pair{})
		r.Operation, r.PeerName, r.Exactly = "commits of "+name, "one commit", 1
		if name == opExpand || c.quota != btrfs.QuotaNone {
			r.Exactly = 0 // the fsync of a record needs no commit, and with quota the cleaner commits, too
		}
		one := slices.Repeat([]float64{1}, len(found[name]))
		rows = append(rows, r.compare(commitsEach, each(found[name], measured.commitsEach), one))
	}
	return rows
}
