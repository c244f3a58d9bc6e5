package testkit

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func TestStartReportsADriverThatEnds(t *testing.T) {
	n := NewNode(t.TempDir())
	_, err := n.Start(t.Context(), exec.Command("sh", "-c", "echo no pool; exit 3"))
	if err == nil || !strings.Contains(err.Error(), "no pool") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v, want the exit code and what it said", err)
	}
}

func TestEnd(t *testing.T) {
	n := NewNode(t.TempDir())
	d, err := n.Launch(exec.Command("sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Fell(); err != nil {
		t.Errorf("it runs, got %v", err)
	}
	if err := d.End(syscall.SIGTERM); err != nil {
		t.Errorf("it was asked to end, got %v", err)
	}
	if err := d.Fell(); err != nil {
		t.Errorf("it was asked to end, got %v", err)
	}

	if d, err = n.Launch(exec.Command("true")); err != nil {
		t.Fatal(err)
	}
	<-d.Ended()
	if d.Fell() == nil {
		t.Error("it has ended by itself, got no error")
	}
	if err := d.End(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("it had ended, got %v", err)
	}
}
