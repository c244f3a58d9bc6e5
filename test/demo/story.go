package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// Sizes of the demo, in bytes.
const (
	mebi         = 1 << 20
	poolSize     = 4 << 30
	fileSize     = 256 * mebi
	smallFiles   = 10_000 // how many
	volumeSize   = 512 * mebi
	restoredSize = 1024 * mebi
	tightSize    = 64 * mebi
	manyVolumes  = 200 // created before and after the kill
)

type demo struct {
	*rig
	out   io.Writer
	began time.Time
	sums  map[string]string // checksums of the data, by name
}

// run runs all steps.
func (d *demo) run(ctx context.Context) error {
	d.began, d.sums = time.Now(), map[string]string{}
	steps := []struct {
		what string
		do   func(context.Context) (proof string, err error)
	}{
		{"start the driver on a btrfs pool of 4 GiB in a sparse file", d.startDriver},
		{"create a volume of 512 MiB and mount it", d.createVolume},
		{"write 256 MiB and 10,000 small files", d.writeData},
		{"take a snapshot", d.takeSnapshot},
		{"overwrite the volume", d.overwrite},
		{"restore the snapshot into a volume of 1 GiB", d.restore},
		{"clone the overwritten volume", d.cloneVolume},
		{"write past the limit of a volume of 64 MiB", d.hitLimit},
		{"expand it to 128 MiB while it is mounted, and write on", d.expand},
		{"show what was made from what", d.showTree},
		{"delete the volume and the snapshot before their copies", d.deleteSources},
		{"kill the driver with SIGKILL while it makes 200 volumes", d.killDriver},
		{"start it again and ask for the same 200 volumes", d.goOn},
		{"delete most of them, and show what is left", d.showRest},
		{"compare the disk with the ledger", d.showCheck},
		{"delete everything", d.deleteAll},
	}
	for i, step := range steps {
		fmt.Fprintf(d.out, "%2d. %s\n", i+1, step.what)
		start := time.Now()
		proof, err := step.do(ctx)
		if err != nil {
			return fmt.Errorf("step %d, %s: %w", i+1, step.what, err)
		}
		fmt.Fprintf(d.out, "    %8s  %s\n", time.Since(start).Round(100*time.Microsecond), proof)
	}
	return nil
}

// leave proves that the demo leaves nothing behind.
func (d *demo) leave() error {
	if err := d.close(); err != nil {
		return fmt.Errorf("clean up %s: %w", d.dir, err)
	}
	if d.began.IsZero() {
		return nil
	}
	fmt.Fprintf(d.out, "Done in %s. Nothing is left mounted, %s is gone.\n", time.Since(d.began).Round(100*time.Millisecond), d.dir)
	return nil
}

func (d *demo) startDriver(ctx context.Context) (string, error) {
	return "csi socket " + d.node.Socket, d.start(ctx)
}

func (d *demo) createVolume(ctx context.Context) (string, error) {
	if err := d.create(ctx, "data", volumeSize, nil); err != nil {
		return "", err
	}
	target, err := d.Mount(ctx, "data", capability)
	return "mounted at " + target, err
}

func (d *demo) writeData(context.Context) (string, error) {
	err := errors.Join(fill(filepath.Join(d.Target("data"), "big"), fileSize, 1), fillSmall(d.Target("data"), smallFiles))
	if err != nil {
		return "", err
	}
	return d.sum("data")
}

// sum remembers the checksum of a volume.
func (d *demo) sum(volume string) (string, error) {
	sum, files, err := checksum(d.Target(volume))
	d.sums[volume] = sum
	return fmt.Sprintf("%d files, checksum %s", files, sum), err
}

// same proves that a volume has the checksum that sum remembered under a name.
func (d *demo) same(volume, as string) (string, error) {
	sum, files, err := checksum(d.Target(volume))
	if err == nil && sum != d.sums[as] {
		err = fmt.Errorf("%s has checksum %s, %s had %s", volume, sum, as, d.sums[as])
	}
	return fmt.Sprintf("%d files, checksum %s as %s", files, sum, as), err
}

func (d *demo) takeSnapshot(ctx context.Context) (string, error) {
	snap, err := d.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "before", SourceVolumeId: "data"})
	d.sums["the snapshot"] = d.sums["data"]
	return fmt.Sprintf("ready: %v", snap.GetSnapshot().GetReadyToUse()), err
}

func (d *demo) overwrite(context.Context) (string, error) {
	if err := fill(filepath.Join(d.Target("data"), "big"), fileSize, 2); err != nil {
		return "", err
	}
	return d.sum("data")
}

func (d *demo) restore(ctx context.Context) (string, error) {
	start := time.Now()
	if err := d.create(ctx, "restored", restoredSize, testkit.FromSnapshot("before")); err != nil {
		return "", err
	}
	took := time.Since(start)
	if _, err := d.Mount(ctx, "restored", capability); err != nil {
		return "", err
	}
	proof, err := d.same("restored", "the snapshot")
	return fmt.Sprintf("%s (the restore itself: %s)", proof, took.Round(100*time.Microsecond)), err
}

func (d *demo) cloneVolume(ctx context.Context) (string, error) {
	start := time.Now()
	if err := d.create(ctx, "cloned", volumeSize, testkit.FromVolume("data")); err != nil {
		return "", err
	}
	took := time.Since(start)
	if _, err := d.Mount(ctx, "cloned", capability); err != nil {
		return "", err
	}
	d.sums["the volume"] = d.sums["data"]
	proof, err := d.same("cloned", "the volume")
	return fmt.Sprintf("%s (the clone itself: %s)", proof, took.Round(100*time.Microsecond)), err
}

func (d *demo) hitLimit(ctx context.Context) (string, error) {
	if err := d.create(ctx, "tight", tightSize, nil); err != nil {
		return "", err
	}
	if _, err := d.Mount(ctx, "tight", capability); err != nil {
		return "", err
	}
	err := fill(filepath.Join(d.Target("tight"), "f"), tightSize+tightSize/4, 3)
	if !errors.Is(err, unix.EDQUOT) {
		return "", fmt.Errorf("80 MiB went into a volume of 64 MiB: %w", err)
	}
	return "refused: " + unix.EDQUOT.Error(), nil
}

func (d *demo) expand(ctx context.Context) (string, error) {
	answer, err := d.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: "tight", CapacityRange: &csi.CapacityRange{RequiredBytes: 2 * tightSize},
	})
	if err != nil {
		return "", err
	}
	if err := fill(filepath.Join(d.Target("tight"), "f"), tightSize+tightSize/4, 3); err != nil {
		return "", err
	}
	return fmt.Sprintf("80 MiB written into %d MiB", answer.GetCapacityBytes()/mebi), nil
}

func (d *demo) deleteSources(ctx context.Context) (string, error) {
	if err := d.remove(ctx, "data"); err != nil {
		return "", err
	}
	if _, err := d.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: "before"}); err != nil {
		return "", err
	}
	restored, err := d.same("restored", "the snapshot")
	if err != nil {
		return "", err
	}
	cloned, err := d.same("cloned", "the volume")
	return restored + "; " + cloned, err
}

// createMany creates the same volumes in each call, 16 at a time, and calls acknowledged for each
// success.
func (d *demo) createMany(ctx context.Context, acknowledged func()) error {
	var wg sync.WaitGroup
	var mu sync.Mutex // protects first
	var first error
	slots := make(chan struct{}, 16)
	for i := range manyVolumes {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := d.create(ctx, fmt.Sprintf("many-%03d", i), tightSize, nil); err != nil {
				mu.Lock()
				defer mu.Unlock()
				if first == nil {
					first = err
				}
				return
			}
			acknowledged()
		})
	}
	wg.Wait()
	return first
}

func (d *demo) killDriver(ctx context.Context) (string, error) {
	var done atomic.Int64
	var killed error
	err := d.createMany(ctx, func() {
		if done.Add(1) == manyVolumes/2 {
			killed = d.End(os.Kill) // as the kernel does when memory is short
		}
	})
	if killed != nil {
		return "", killed
	}
	if acknowledged := done.Load(); acknowledged < manyVolumes/2 {
		return "", fmt.Errorf("only %d were acknowledged: %w", acknowledged, err)
	}
	if code := status.Code(err); code != codes.Unavailable && code != codes.Canceled {
		return "", fmt.Errorf("the driver was killed, a request ended with: %w", err)
	}
	return fmt.Sprintf("%d were acknowledged", done.Load()), nil
}

func (d *demo) goOn(ctx context.Context) (string, error) {
	if err := d.start(ctx); err != nil {
		return "", err
	}
	if err := d.createMany(ctx, func() {}); err != nil {
		return "", err
	}
	list, err := d.ListVolumes(ctx, &csi.ListVolumesRequest{})
	many := 0
	for _, e := range list.GetEntries() {
		if strings.HasPrefix(e.GetVolume().GetVolumeId(), "many-") {
			many++
		}
	}
	if err == nil && many != manyVolumes {
		err = fmt.Errorf("%d volumes are there, %d were asked for", many, manyVolumes)
	}
	return fmt.Sprintf("%d are there, each once", many), err
}

func (d *demo) showTree(ctx context.Context) (string, error) {
	return "btrfs-csi tree", d.show(ctx, "tree")
}

func (d *demo) showRest(ctx context.Context) (string, error) {
	for i := 3; i < manyVolumes; i++ { // a few volumes are enough
		if _, err := d.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: fmt.Sprintf("many-%03d", i)}); err != nil {
			return "", err
		}
	}
	return d.showTree(ctx)
}

func (d *demo) showCheck(ctx context.Context) (string, error) {
	return "btrfs-csi check", d.show(ctx, "check")
}

// show prints the output of another command of the binary for the demo's pool.
func (d *demo) show(ctx context.Context, command string) error {
	cmd := exec.CommandContext(ctx, d.binary, command, "--state-dir", d.State)
	cmd.Stdout, cmd.Stderr = &indent{Writer: d.out}, &indent{Writer: d.out}
	return cmd.Run()
}

func (d *demo) deleteAll(ctx context.Context) (string, error) {
	list, err := d.ListVolumes(ctx, &csi.ListVolumesRequest{})
	if err != nil {
		return "", err
	}
	for _, e := range list.GetEntries() {
		if err := d.remove(ctx, e.GetVolume().GetVolumeId()); err != nil {
			return "", err
		}
	}
	list, err = d.ListVolumes(ctx, &csi.ListVolumesRequest{})
	return fmt.Sprintf("%d volumes are left", len(list.GetEntries())), err
}

// indent indents what a command prints.
type indent struct {
	io.Writer
	inLine bool // the last write ended within a line
}

func (w *indent) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		if !w.inLine {
			line = "    " + line
		}
		if _, err := io.WriteString(w.Writer, line); err != nil {
			return 0, err
		}
		w.inLine = !strings.HasSuffix(line, "\n")
	}
	return len(p), nil
}
