package cluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// process is a started component.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// startProcess starts a program whose output goes to a log.
func startProcess(name, log string, cmd *exec.Cmd) (*process, error) {
	f, err := openLog(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name, log, cmd, make(chan struct{})}
	go func() {
		_ = cmd.Wait() // method ended reports the result
		close(p.done)
	}()
	return p, nil
}

// kill ends the process, and returns when it has ended.
func (p *process) kill() {
	if p != nil {
		_ = p.cmd.Process.Kill() // it fails if the process has ended
		<-p.done
	}
}

// ended returns the error for a process that has ended too early.
func (p *process) ended() error {
	return fmt.Errorf("%s ended (%s); the end of %s:\n%s", p.name, p.cmd.ProcessState, p.log, tail(p.log))
}

// ready waits until a probe of the process succeeds.
func (p *process) ready(ctx context.Context, probe func(context.Context) error) error {
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return p.ended()
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w (%w); the end of %s:\n%s", p.name, ctx.Err(), err, p.log, tail(p.log))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func openLog(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}

// tail returns the last lines of a log, indented.
func tail(path string) string {
	const lines, size = 25, 16 << 10
	f, err := os.Open(path)
	if err != nil {
		return "  " + err.Error()
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, end-size), io.SeekStart)
	}
	data, _ := io.ReadAll(f)
	last := strings.Split(string(bytes.TrimSpace(data)), "\n")
	return "  " + strings.Join(last[max(0, len(last)-lines):], "\n  ")
}

// run runs a command and waits for it. The error contains its output.
func run(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
