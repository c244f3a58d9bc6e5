package oci

import (
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

// nowhen is a time that no test runs at.
var nowhen = time.Unix(1e9, 0)

func TestTree(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "empty", "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "tool"), "program", 0o4750)
	if err := os.Symlink("tool", filepath.Join(root, "alias")); err != nil {
		t.Fatal(err)
	}
	got, err := Tree(root, "opt")
	if err != nil {
		t.Fatal(err)
	}
	want := []File{
		{Path: "/opt/alias", Link: "tool", Mode: 0o777},
		{Path: "/opt/empty", Dir: true, Mode: 0o755},
		{Path: "/opt/empty/below", Dir: true, Mode: 0o755},
		{Path: "/opt/tool", Source: filepath.Join(root, "tool"), Mode: fs.ModeSetuid | 0o750},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestTreeRefusesWhatIsNoFile(t *testing.T) {
	root := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(root, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Tree(root, "/"); err == nil || !strings.Contains(err.Error(), "pipe") {
		t.Errorf("a pipe gave error %v, want one that names it", err)
	}
	if _, err := Tree(filepath.Join(root, "missing"), "/"); err == nil {
		t.Error("a tree that is not there gave no error")
	}
}

func TestLaterCounts(t *testing.T) {
	got, err := arrange([]File{{Path: "/a", Content: []byte("old")}, {Path: "a/", Content: []byte("new")}})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || string(got[0].Content) != "new" {
		t.Errorf("got %+v, want the later alone", got)
	}
}

func write(t *testing.T, file, content string, mode uint32) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Chmod(file, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
}
