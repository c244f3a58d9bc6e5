package main

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/btrfs-csi/btrfs-csi/build/image/debian"
)

// guest is one boot of a system.
type guest struct {
	system
	arch   string
	dir    string   // gets its disks and its console
	job    string   // directory, mounted at /job
	pools  []string // files of disks, which the guest has from /dev/vdd on
	accel  string
	memory int // MiB
	limit  time.Duration
	log    func(format string, args ...any)
}

const (
	scratchSize = 40 << 30 // sparse
	resultSize  = 256 << 20
)

// run boots the guest, waits until it is off, and returns what it has written to /tmp/out.
func (g *guest) run(ctx context.Context) (files map[string]string, err error) {
	scratch, job, result := filepath.Join(g.dir, "scratch"), filepath.Join(g.dir, "job.img"), filepath.Join(g.dir, "result")
	defer func() { err = errors.Join(err, remove(scratch, job, result)) }()
	if err := errors.Join(remove(scratch, job, result), sparse(scratch, scratchSize), sparse(result, resultSize)); err != nil {
		return nil, err
	}
	if _, err := debian.Output(exec.CommandContext(ctx, "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", g.job, job, "1G")); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, g.limit)
	defer cancel()
	if err := g.boot(ctx, append([]string{scratch, job, result}, g.pools...)); err != nil {
		return nil, err
	}
	f, err := os.Open(result)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return untar(f)
}

// boot runs QEMU until the guest is off, and logs the lines of its console that are for people.
func (g *guest) boot(ctx context.Context, disks []string) error {
	program, console := "qemu-system-x86_64", "ttyS0"
	args := []string{"-cpu", "max"}
	if g.arch == "arm64" {
		program, console = "qemu-system-aarch64", "ttyAMA0"
		args = []string{"-machine", "virt,gic-version=3", "-cpu", "cortex-a72"}
	}
	accel := g.accel
	if accel == "tcg" {
		accel = "tcg,thread=multi,tb-size=1024"
	}
	args = append(args, "-accel", accel, "-smp", "2", "-m", fmt.Sprint(g.memory), "-nodefaults", "-display", "none", "-no-reboot",
		"-kernel", g.vmlinuz, "-initrd", g.initrd, "-serial", "stdio",
		"-append", "console="+console+" panic=-1 quiet mitigations=off nokaslr")
	for _, disk := range disks {
		args = append(args, "-drive", "if=virtio,format=raw,cache=unsafe,discard=unmap,file="+disk)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var complaints strings.Builder
	cmd.Stderr = &complaints
	kept, err := os.Create(filepath.Join(g.dir, "console.log"))
	if err != nil {
		return err
	}
	defer kept.Close()
	if err := cmd.Start(); err != nil {
		return err
	}
	done := false
	lines := bufio.NewScanner(io.TeeReader(out, kept))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if _, text, is := strings.Cut(strings.TrimSpace(lines.Text()), ":: "); is {
			done = text == "done"
			if !done {
				g.log("%s", text)
			}
		}
	}
	err = cmd.Wait()
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("the guest is not off after %s; its console is in %s", g.limit, kept.Name())
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("%s: %w: %s", program, err, complaints.String())
	case !done:
		return fmt.Errorf("the guest has ended early; its console is in %s", kept.Name())
	}
	return nil
}

// untar returns the regular files of a tar, by name. What follows its end is ignored.
func untar(r io.Reader) (map[string]string, error) {
	files := map[string]string{}
	for t := tar.NewReader(bufio.NewReader(r)); ; {
		header, err := t.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		text, err := io.ReadAll(t)
		if err != nil {
			return nil, err
		}
		files[filepath.Base(header.Name)] = string(text)
	}
}

func sparse(file string, size int64) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// remove removes files, which may be absent.
func remove(files ...string) (err error) {
	for _, file := range files {
		if failed := os.Remove(file); !errors.Is(failed, os.ErrNotExist) {
			err = errors.Join(err, failed)
		}
	}
	return err
}
