package components

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"golang.org/x/mod/modfile"
)

func newTestBuilder(t *testing.T, log *strings.Builder) *builder {
	t.Helper()
	b, err := newBuilder(t.Context(), log)
	if err != nil {
		t.Fatal(err)
	}
	b.dir = t.TempDir()
	return b
}

// TestBuildPause builds only pause, because the other components take longer.
func TestBuildPause(t *testing.T) {
	var log strings.Builder
	b := newTestBuilder(t, &log)
	pause := cluster[slices.IndexFunc(cluster, func(c component) bool { return c.name == "pause" })]
	if err := b.build(t.Context(), pause); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(log.String(), "building pause") {
		t.Errorf("logged %q", log.String())
	}
	bin, err := b.link(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stopsWhenAsked(t, filepath.Join(bin, "pause"))

	log.Reset()
	if err := b.build(t.Context(), pause); err != nil {
		t.Fatal(err)
	}
	if again, err := b.link(t.Context()); err != nil || again != bin {
		t.Errorf("linked into %s, then into %s: %v", bin, again, err)
	}
	if log.String() != "" {
		t.Errorf("built again: %s", log.String())
	}
}

// stopsWhenAsked checks that pause ends at SIGTERM. Otherwise each pod would end half a minute later, by SIGKILL.
func stopsWhenAsked(t *testing.T, pause string) {
	t.Helper()
	command := exec.Command(pause)
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer command.Process.Kill()
	if err := command.Process.Signal(syscall.SIGCHLD); err != nil {
		t.Fatal(err)
	}
	if err := command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	// A signal before the handler is set ends the program, too.
	err := command.Wait()
	if status := command.ProcessState.Sys().(syscall.WaitStatus); err != nil && status.Signal() != syscall.SIGTERM {
		t.Error(err)
	}
}

func TestBuildNamesWhatFailed(t *testing.T) {
	var log strings.Builder
	b := newTestBuilder(t, &log)
	for _, c := range []struct {
		name    string
		program program
		want    string
	}{
		{"a package that is not there", program{names: []string{"p"}, pkg: "./nowhere"}, "nowhere"},
		{"a module that go.mod has not", program{names: []string{"p"}, pkg: ".", module: "example.com/m"}, "does not require example.com/m"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := b.buildAll(t.Context(), []component{{name: "thing", dir: "pause", programs: []program{c.program}}})
			if err == nil || !strings.Contains(err.Error(), "build thing: ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestModules checks that each go.mod lists its programs under tool, so that `go mod tidy` keeps their versions and
// sums, and that each module has a program.
func TestModules(t *testing.T) {
	files, err := filepath.Glob("*/go.mod")
	if err != nil || len(files) == 0 {
		t.Fatal("no modules", err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		module, err := modfile.Parse(file, content, nil)
		if err != nil {
			t.Fatal(err)
		}
		tools := map[string]bool{".": true}
		for _, tool := range module.Tool {
			tools[tool.Path] = true
		}
		versions, err := required(file)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, c := range slices.Concat(cluster, suite) {
			if c.dir != filepath.Dir(file) {
				continue
			}
			found = true
			for _, p := range c.programs {
				if !tools[p.pkg] {
					t.Errorf("%s: go get -tool %s", file, p.pkg)
				}
				if versions[p.module] == "" {
					t.Errorf("%s: %s is not required", file, p.module)
				}
			}
		}
		if !found {
			t.Errorf("%s: nothing is built of it", file)
		}
	}
}

func TestStamped(t *testing.T) {
	got := stamped("-X a=VERSION -X b=MAJOR -X c=MINOR", "v1.37.2")
	if want := "-X a=v1.37.2 -X b=1 -X c=37"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestOurs(t *testing.T) {
	names := ours("registry.k8s.io/etcd:3.7.0-0\nlocalhost/e2e/nginx:1.28\nlocalhost/e2e/volume/nfs:1.6\nlocalhost/e2e/nginx:1.27\n")
	if !slices.Equal(names["nginx"], []string{"localhost/e2e/nginx:1.27", "localhost/e2e/nginx:1.28"}) {
		t.Errorf("got %q", names["nginx"])
	}
	if len(names["etcd"]) > 0 {
		t.Errorf("not ours: %q", names["etcd"])
	}
}

func TestArchiveFollowsItsFiles(t *testing.T) {
	var log strings.Builder
	b := newTestBuilder(t, &log)
	archive := func(content string) string {
		t.Helper()
		files := fstest.MapFS{"program": {Data: []byte(content), Mode: 0o755}}
		archive, err := b.archive(t.Context(), image{names: []string{"localhost/e2e/some:1"}, files: files})
		if err != nil {
			t.Fatal(err)
		}
		return archive
	}
	first := archive("a")
	if again := archive("a"); again != first {
		t.Errorf("the same file made %s and %s", first, again)
	}
	if other := archive("b"); other == first {
		t.Error("another file, the same archive")
	}
}

func TestCheckStatic(t *testing.T) {
	if err := checkStatic("/bin/sh"); err == nil || !strings.Contains(err.Error(), "libc") {
		t.Errorf("the shell of the machine has libraries, got %v", err)
	}
}
