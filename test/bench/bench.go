package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

// part is a part of the benchmark that can run alone.
type part struct {
	name    string
	seconds float64 // its estimated time, for the progress
	run     func(ctx context.Context, b *bench) ([]row, error)
}

// bench runs the parts of the benchmark.
type bench struct {
	dir    string // the directory of the filesystems
	binary string // the path of the driver
	sides  map[string]opener
	log    io.Writer
	begin  time.Time

	total, done float64 // estimated seconds of the parts
	now         string  // the running part
}

// newBench creates a directory below dir and builds the driver in it.
func newBench(ctx context.Context, dir, binary string, log io.Writer) (*bench, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("root is wanted: filesystems are made and mounted")
	}
	dir, err := os.MkdirTemp(dir, "btrfs-csi-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{dir: dir, log: log}
	if binary == "" {
		binary = filepath.Join(dir, "btrfs-csi")
		fmt.Fprintln(log, "Building the driver")
		err = build(ctx, binary)
	}
	b.binary, b.sides = binary, sides(binary)
	if err != nil {
		err = errors.Join(err, b.close())
	}
	return b, err
}

// build builds the driver from the repository of this module.
func build(ctx context.Context, binary string) error {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/btrfs-csi/btrfs-csi").Output()
	if err != nil {
		return fmt.Errorf("find the driver's source: run this in test/bench, or name a binary with --binary: %w", err)
	}
	return testkit.Build(ctx, string(out[:len(out)-1]), binary)
}

// close removes the directory, but nothing that is still mounted.
func (b *bench) close() error {
	if left, err := testkit.MountsIn(b.dir); err != nil || len(left) > 0 {
		return fmt.Errorf("unmount %q and remove %s by hand (%w)", left, b.dir, errors.Join(err, unix.EBUSY))
	}
	return os.RemoveAll(b.dir)
}

// run runs parts and calls take with the rows of each. It skips and reports what the kernel does not
// support.
func (b *bench) run(ctx context.Context, parts []part, take func([]row) error) error {
	version, err := exec.CommandContext(ctx, b.binary, "version").Output()
	if err != nil {
		return fmt.Errorf("%s version: %w", b.binary, err)
	}
	where, err := thisMachine(strings.Join(strings.Fields(string(version)), " "))
	if err != nil {
		return err
	}
	b.begin = time.Now()
	for _, p := range parts {
		b.total += p.seconds
	}
	for k, p := range parts {
		b.now = fmt.Sprintf("[%d/%d] %s", k+1, len(parts), p.name)
		rows, err := p.run(ctx, b)
		if errors.Is(err, btrfs.ErrUnsupported) {
			fmt.Fprintf(b.log, "%s: left out: %v\n", b.now, err)
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		b.done += p.seconds
		for i := range rows {
			rows[i].Machine = where
		}
		if err := take(rows); err != nil {
			return err
		}
	}
	return nil
}

// progress prints the current step and the remaining time.
func (b *bench) progress(format string, args ...any) {
	left := "?"
	if b.done > 0 {
		each := time.Since(b.begin).Seconds() / b.done
		left = time.Duration(float64(time.Second) * each * (b.total - b.done)).Round(time.Second).String()
	} else if b.total > 0 {
		left = (time.Duration(b.total) * time.Second).String()
	}
	fmt.Fprintf(b.log, "%s: %s; about %s left\n", b.now, fmt.Sprintf(format, args...), left)
}

// choose returns the parts whose names match.
func choose(parts []part, only *regexp.Regexp) (chosen []part) {
	for _, p := range parts {
		if only.MatchString(p.name) {
			chosen = append(chosen, p)
		}
	}
	return chosen
}
