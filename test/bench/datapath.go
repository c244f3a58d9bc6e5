package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// load is a way to read and write, in the terms of fio. Each place gets the same amount of I/O, not
// the same time, because more writes make a more fragmented file. Writes are synced in intervals and
// at the end.
type load struct {
	name string
	args []string
	unit unit
}

var (
	iops         = unit{"I/O operations/s", higher}
	mebibyteRate = unit{"MiB/s", higher}
)

var (
	sequentialRead  = load{"sequential read, 1 MiB", []string{"--rw=read", "--bs=1m"}, mebibyteRate}
	randomRead      = load{"random read, 4 KiB", []string{"--rw=randread", "--bs=4k", "--io_size=64m"}, iops}
	sequentialWrite = load{"sequential write, 1 MiB, every 64 synced", []string{"--rw=write", "--bs=1m", "--fsync=64"}, mebibyteRate}
	randomWrite     = load{"random write, 4 KiB, every 1024 synced", []string{"--rw=randwrite", "--bs=4k", "--io_size=32m", "--fsync=1024"}, iops}
	syncedWrite     = load{"random write, 4 KiB, each synced", []string{"--rw=randwrite", "--bs=4k", "--io_size=4m", "--fsync=1"}, iops}
)

// dataPath compares I/O in a published volume with I/O in a plain subvolume and in a plain directory
// of the same filesystem. The volume and the subvolume have a number of snapshots, each with other
// data.
type dataPath struct {
	quota     btrfs.QuotaMode
	snapshots int
	loads     []load
	places    []string
	rounds    int
	want      float64
}

const (
	placeVolume    = "published volume"
	placeSubvolume = "plain subvolume"
	placeDirectory = "bare directory"
)

// dataSize is the size of the file for I/O, in bytes.
const dataSize = 256 << 20

// dataIn returns the path of the file for I/O.
func dataIn(dir string) string { return filepath.Join(dir, "data") }

func (d dataPath) part() part {
	return part{
		name:    fmt.Sprintf("data path/%s/%d snapshots", d.quota, d.snapshots),
		seconds: 5 + 2*float64(d.rounds*len(d.loads)*len(d.places)) + float64(d.snapshots)/5,
		run:     d.run,
	}
}

func (d dataPath) run(ctx context.Context, b *bench) (_ []row, err error) {
	if _, err := exec.LookPath("fio"); err != nil {
		return nil, fmt.Errorf("fio is wanted: install the package fio: %w", err)
	}
	s, err := b.open(ctx, contestant{side: sideDriver}, d.quota, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	paths, err := d.prepare(ctx, s)
	if err != nil {
		return nil, err
	}
	if d.snapshots, err = d.snapshot(ctx, b, s, paths); err != nil {
		return nil, err
	}
	var rows []row
	for _, l := range d.loads {
		found, err := d.compare(ctx, b, s, paths, l)
		if err != nil {
			return nil, err
		}
		rows = append(rows, found...)
	}
	return rows, nil
}

// prepare creates the places, each with a file.
func (d dataPath) prepare(ctx context.Context, s *stand) (map[string]string, error) {
	driver := s.side.(*driver)
	paths := map[string]string{placeSubvolume: filepath.Join(s.Pool(), "plain"), placeDirectory: filepath.Join(s.Pool(), "bare")}
	err := driver.create(ctx, volumeName(0), nil, testkit.Writer)
	if err != nil {
		return nil, err
	}
	if paths[placeVolume], err = driver.Mount(ctx, volumeName(0), testkit.Writer); err != nil {
		return nil, err
	}
	err = errors.Join(btrfs.Create(paths[placeSubvolume]), os.Mkdir(paths[placeDirectory], 0o755), os.Mkdir(filepath.Join(s.Pool(), "snapshots"), 0o755))
	if err != nil {
		return nil, err
	}
	if err := writeNoise(dataSize, dataIn(paths[placeVolume]), dataIn(paths[placeSubvolume]), dataIn(paths[placeDirectory])); err != nil {
		return nil, err
	}
	return paths, nil
}

// snapshot creates the snapshots and returns their number, which is lower than wanted if they take
// too long.
func (d dataPath) snapshot(ctx context.Context, b *bench, s *stand, paths map[string]string) (made int, err error) {
	driver := s.side.(*driver)
	for end := time.Now().Add(seriesTime); made < d.snapshots && time.Now().Before(end); made++ {
		if made%100 == 0 {
			b.progress("snapshot %d of %d", made, d.snapshots)
		}
		plain := filepath.Join(s.Pool(), "snapshots", fmt.Sprint(made))
		err := errors.Join(driver.snapshot(ctx, made, 0), btrfs.Snapshot(plain, paths[placeSubvolume], true),
			scribble(dataIn(paths[placeVolume])), scribble(dataIn(paths[placeSubvolume])), ctx.Err())
		if err != nil {
			return made, err
		}
	}
	return made, nil
}

func (d dataPath) compare(ctx context.Context, b *bench, s *stand, paths map[string]string, l load) ([]row, error) {
	found := map[string][]float64{}
	for round := range d.rounds {
		b.progress("%s, round %d of %d", l.name, round+1, d.rounds)
		for _, i := range inTurn(len(d.places), round) {
			if err := s.settle(ctx); err != nil {
				return nil, err
			}
			value, err := fio(ctx, paths[d.places[i]], l)
			if err != nil {
				return nil, err
			}
			found[d.places[i]] = append(found[d.places[i]], value)
		}
	}
	var rows []row
	for _, peer := range d.places[1:] {
		r := row{
			Topic: topicData, Operation: l.name, Inflight: 1, Quota: string(d.quota), OursName: placeVolume, PeerName: peer,
			X: float64(d.snapshots), XName: "snapshots",
		}
		if peer == placeSubvolume {
			r.Want = d.want
		}
		rows = append(rows, r.compare(l.unit, found[placeVolume], found[peer]))
	}
	return rows, nil
}

// fio runs fio on the file in dir.
func fio(ctx context.Context, dir string, l load) (float64, error) {
	args := append([]string{
		"--name=bench", "--filename=" + dataIn(dir), fmt.Sprintf("--size=%d", dataSize), "--ioengine=psync",
		"--runtime=10", "--invalidate=1", "--randrepeat=1", "--output-format=json",
	}, l.args...)
	var failure bytes.Buffer
	cmd := exec.CommandContext(ctx, "fio", args...)
	cmd.Stderr = &failure
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("fio %v: %w: %s", l.args, err, failure.String())
	}
	return fioValue(out, l.unit)
}

// fioValue returns the wanted value from the output of fio. Either its reads or its writes are zero.
func fioValue(output []byte, u unit) (float64, error) {
	type direction struct {
		Bytes float64 `json:"bw_bytes"` // per second
		IOPS  float64 `json:"iops"`
	}
	var said struct {
		Jobs []struct{ Read, Write direction } `json:"jobs"`
	}
	if err := json.Unmarshal(output, &said); err != nil || len(said.Jobs) != 1 {
		return 0, fmt.Errorf("fio said %q: one job is wanted (%w)", output, err)
	}
	read, write := said.Jobs[0].Read, said.Jobs[0].Write
	if u == mebibyteRate {
		return (read.Bytes + write.Bytes) / (1 << 20), nil
	}
	return read.IOPS + write.IOPS, nil
}

// noise returns incompressible data.
func noise(size int) []byte {
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data) // Read never fails
	return data
}

// writeNoise creates files of incompressible data in extents of a MiB, like files that have grown over
// time. A small change to one large extent would concern all of it. The files grow in turn, so that
// none has a better place than the others.
func writeNoise(size int, paths ...string) error {
	const extent = 1 << 20
	content := noise(size)
	for offset := 0; offset < size; offset += extent {
		for _, i := range inTurn(len(paths), offset/extent) {
			if err := writeSynced(paths[i], content[offset:min(offset+extent, size)], int64(offset)); err != nil {
				return err
			}
		}
	}
	return nil
}

func writeSynced(path string, content []byte, offset int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, offset)
	return errors.Join(err, f.Sync(), f.Close())
}

// scribbles is the number of blocks that change between two snapshots.
const scribbles = 2

// scribble writes blocks of 4 KiB at random places of a file.
func scribble(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	const block = 4 << 10
	content := noise(block)
	for range scribbles {
		_, e := f.WriteAt(content, rand.Int64N(dataSize/block)*block)
		err = errors.Join(err, e)
	}
	return errors.Join(err, f.Close())
}
