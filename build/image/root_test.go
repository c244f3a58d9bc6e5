package main

import (
	"debug/elf"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/build/image/debian"
)

// A program of this machine, in packages as Debian would split it.
const program = "/usr/bin/true"

// wanted is the definition that the tests use.
var wanted = definition{packages: []string{"tool"}, programs: []string{"tool"}, files: []string{"/etc/tool*"}}

// TestRoot makes a root filesystem of packages that use directories outside /usr, absolute links,
// and the licence of another package, as Debian's do.
func TestRoot(t *testing.T) {
	on := host(t)
	packages := []debian.Package{
		pack(t, "common", map[string]string{"usr/share/doc/common/copyright": "the licence\n", "usr/share/unused": "x"}),
		libraries(t, on, link("usr/share/doc/libs", "common")),
		pack(t, "tool", map[string]string{"bin/tool-1": "@" + program, "etc/tool.conf": "conf\n", "usr/share/doc/tool/copyright": "its own\n"},
			link("sbin/tool", "/bin/tool-1"), chmod("bin/tool-1", fs.ModeSetuid|0o755)),
		pack(t, "base", nil, link("bin", "usr/bin")), // as in Debian 13
		pack(t, "other", map[string]string{"bin/other": "@" + program}),
	}
	root, used, err := makeRoot(t.Context(), wanted, on, packages, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if got := names(used); got != "libs tool" {
		t.Errorf("the packages used are %q, want libs and tool", got)
	}
	for at, want := range map[string]string{
		"usr/share/doc/libs/copyright": "the licence\n",
		"usr/share/doc/tool/copyright": "its own\n",
		"etc/tool.conf":                "conf\n",
		"var/lib/dpkg/status.d/tool":   "Package: tool\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: test\n",
	} {
		if got, err := os.ReadFile(filepath.Join(root, at)); err != nil || string(got) != want {
			t.Errorf("%s is %q (%v), want %q", at, got, err, want)
		}
	}
	for at, want := range map[string]string{"bin": "usr/bin", "lib": "usr/lib", "usr/sbin/tool": "../bin/tool-1"} {
		if got, err := os.Readlink(filepath.Join(root, at)); err != nil || got != want {
			t.Errorf("%s leads to %q (%v), want %q", at, got, err, want)
		}
	}
	for at, want := range map[string]fs.FileMode{"usr/bin/tool-1": 0o755, "tmp": fs.ModeDir | fs.ModeSticky | 0o777} {
		if info, err := os.Stat(filepath.Join(root, at)); err != nil || info.Mode() != want {
			t.Errorf("%s is %v (%v), want mode %s", at, info, err, want)
		}
	}
	for _, at := range []string{"usr/share/unused", "usr/bin/other", "usr/share/doc/common"} {
		if _, err := os.Lstat(filepath.Join(root, at)); err == nil {
			t.Errorf("%s is there, though nobody asked for it", at)
		}
	}

	opened, err := os.OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	if err := checkNeeds(on, opened); err != nil {
		t.Errorf("the check found %v", err)
	}
	if _, err := (chroot{root}).run(t.Context(), "tool"); err != nil {
		t.Errorf("the program does not run: %v", err)
	}
}

func TestRootRefuses(t *testing.T) {
	on := host(t)
	libs := libraries(t, on, text("usr/share/doc/libs/copyright", "x"))
	tool := map[string]string{"bin/tool": "@" + program, "etc/tool.conf": "x", "usr/share/doc/tool/copyright": "x"}
	without := func(path string) map[string]string {
		rest := maps.Clone(tool)
		delete(rest, path)
		return rest
	}
	for _, test := range []struct {
		name     string
		target   target
		packages []debian.Package
		want     string
	}{
		{"no program", on, []debian.Package{libs, pack(t, "tool", without("bin/tool"))}, "no package has a program tool"},
		{"no file", on, []debian.Package{libs, pack(t, "tool", without("etc/tool.conf"))}, "/etc/tool*: no package has it"},
		{"no licence", on, []debian.Package{libs, pack(t, "tool", without("usr/share/doc/tool/copyright"))}, "licence of tool"},
		{"no libraries", on, []debian.Package{pack(t, "tool", tool)}, "of /usr/bin/tool"},
		{"dangling link", on, []debian.Package{libs, pack(t, "tool", tool, link("etc/tool.link", "missing"))}, "/etc/tool.link"},
		{"link to itself", on, []debian.Package{libs, pack(t, "tool", tool, link("etc/tool.link", "tool.link"))}, "too many links"},
		{"directory", on, []debian.Package{libs, pack(t, "tool", tool, text("etc/tool.d/x", "x"))}, "a file is wanted"},
		{"other machine", target{on.arch, elf.EM_S390, on.tuple}, []debian.Package{libs, pack(t, "tool", tool)}, "EM_S390 is wanted"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, _, err := makeRoot(t.Context(), wanted, test.target, test.packages, t.TempDir())
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error %v, want one with %q", err, test.want)
			}
		})
	}
}

func TestCheckFindsWhatIsMissing(t *testing.T) {
	on := host(t)
	packages := []debian.Package{
		libraries(t, on, text("usr/share/doc/libs/copyright", "x")),
		pack(t, "tool", map[string]string{"bin/tool": "@" + program, "etc/tool.conf": "x", "usr/share/doc/tool/copyright": "x"}),
	}
	_, loader, err := on.needs(program)
	if err != nil {
		t.Fatal(err)
	}
	for _, missing := range []string{merged(loader), "/usr/lib/" + on.tuple + "/libc.so.6"} {
		root, _, err := makeRoot(t.Context(), wanted, on, packages, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		opened, err := os.OpenRoot(root)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { opened.Close() })
		if err := os.Remove(filepath.Join(root, missing)); err != nil {
			t.Fatal(err)
		}
		if err := checkNeeds(on, opened); err == nil {
			t.Errorf("without %s the check found nothing", missing)
		}
		if _, err := (chroot{root}).run(t.Context(), "tool"); err == nil {
			t.Errorf("the program ran without %s", missing)
		}
	}
}

// host returns the target of this machine.
func host(t *testing.T) target {
	t.Helper()
	on, err := targetOf(runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	return on
}

// libraries makes a package of the libraries of the program, with the layout of Debian 12.
func libraries(t *testing.T, on target, more ...func(*testing.T, string)) debian.Package {
	t.Helper()
	names, loader, err := on.needs(program)
	if err != nil {
		t.Fatal(err)
	}
	dir := "lib/" + on.tuple + "/"
	files := map[string]string{dir + path.Base(loader): "@" + loader}
	for _, name := range names {
		files[dir+name] = "@/" + dir + name
	}
	return pack(t, "libs", files, append(more, link(loader[1:], "/"+dir+path.Base(loader)))...)
}

func names(packages []debian.Package) string {
	all := []string{}
	for _, p := range packages {
		all = append(all, p.Name)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// pack makes a package of files, each given by its content, or after @ by a path.
func pack(t *testing.T, name string, files map[string]string, more ...func(*testing.T, string)) debian.Package {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "package")
	text("DEBIAN/control", "Package: "+name+"\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: test\n")(t, root)
	for at, content := range files {
		if source, found := strings.CutPrefix(content, "@"); found {
			bytes, err := os.ReadFile(source)
			if err != nil {
				t.Fatal(err)
			}
			content = string(bytes)
		}
		text(at, content)(t, root)
	}
	for _, step := range more {
		step(t, root)
	}
	p := debian.Package{Name: name, Version: "1", File: filepath.Join(dir, name+".deb")}
	if _, err := debian.Output(exec.CommandContext(t.Context(), "dpkg-deb", "-Zgzip", "--build", root, p.File)); err != nil {
		t.Fatal(err)
	}
	return p
}

func text(at, content string) func(*testing.T, string) {
	return func(t *testing.T, root string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, at)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, at), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func link(at, to string) func(*testing.T, string) {
	return func(t *testing.T, root string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, at)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, filepath.Join(root, at)); err != nil {
			t.Fatal(err)
		}
	}
}

func chmod(at string, mode fs.FileMode) func(*testing.T, string) {
	return func(t *testing.T, root string) {
		t.Helper()
		if err := os.Chmod(filepath.Join(root, at), mode); err != nil {
			t.Fatal(err)
		}
	}
}
