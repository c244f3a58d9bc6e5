package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
)

var callsEach = unit{"system calls/operation", lower}

// systemCalls counts those of the driver for one operation at a time, under strace.
// Those that wait for others, of which Go makes as many as it likes, are left out.
func systemCalls() part {
	const items = 50
	operations := []string{opCreate, opStats, opList, opExpand, opSnapshot, opClone, opRestore, opView, opDelete, opDeleteSnapshot}
	p := part{name: "system calls", seconds: 20}
	p.run = func(ctx context.Context, b *bench) (rows []row, err error) {
		s, err := b.open(ctx, contestant{side: sideDriver}, btrfs.QuotaFull, nil)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, s.close()) }()
		for _, name := range operations {
			b.progress("%s", name)
			if before := s.operations()[preparations[name]]; before != nil {
				if _, err := perform(ctx, before, 1, limit{items, math.MaxInt64}); err != nil {
					return nil, err
				}
			}
			calls, err := s.traced(ctx, func() error {
				_, err := perform(ctx, s.operations()[name], 1, limit{items, math.MaxInt64})
				return err
			})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			r := row{Topic: topicCalls, Operation: name, Inflight: 1, Quota: string(btrfs.QuotaFull), OursName: sideDriver}
			rows = append(rows, r.compare(callsEach, []float64{calls / items}, []float64{0}))
		}
		return rows, nil
	}
	return p
}

// traced counts the system calls of the driver while fn runs.
func (s *stand) traced(ctx context.Context, fn func() error) (float64, error) {
	out := filepath.Join(s.dir, "strace")
	cmd := exec.CommandContext(ctx, "strace", "-f", "-c", "-o", out, "-p", strconv.Itoa(s.side.(*driver).Cmd.Process.Pid))
	said, err := cmd.StderrPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("install the package strace: %w", err)
	}
	lines := bufio.NewScanner(said)
	for lines.Scan() && !strings.Contains(lines.Text(), "attached") { // it says so when it has
	}
	err = fn()
	go func() { // threads that begin are reported, too
		for lines.Scan() {
		}
	}()
	err = errors.Join(err, cmd.Process.Signal(os.Interrupt))
	_ = cmd.Wait() // the signal is what it ends by
	text, readErr := os.ReadFile(out)
	if err := errors.Join(err, readErr); err != nil {
		return 0, err
	}
	return countCalls(string(text))
}

// waits are the calls by which threads wait for work, and wake each other.
var waits = map[string]bool{
	"futex": true, "epoll_pwait": true, "epoll_wait": true, "nanosleep": true, "clock_nanosleep": true, "restart_syscall": true,
	"sched_yield": true, "tgkill": true, "rt_sigreturn": true, "total": true,
}

// countCalls adds up the table of strace -c: the fourth column is the number, the
// last one the name.
func countCalls(table string) (sum float64, err error) {
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) < 5 || waits[fields[len(fields)-1]] {
			continue
		}
		if n, err := strconv.ParseFloat(fields[3], 64); err == nil {
			sum += n
		}
	}
	if sum == 0 {
		return 0, fmt.Errorf("strace counted nothing: %q", table)
	}
	return sum, nil
}
