package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestChoose(t *testing.T) {
	debian := map[string]string{"debian": "http://mirror.example/debian"}
	names := func(chosen []release) (all []string) {
		for _, r := range chosen {
			all = append(all, r.kernel)
		}
		return all
	}
	for _, test := range []struct {
		names []string
		want  string // kernels, or a part of the error
		fails bool
	}{
		{nil, "5.10 6.1 6.12 newest", false},
		{[]string{"6.12", "6.1"}, "6.1 6.12", false},
		{[]string{"6.2"}, `kernel "6.2"`, true},
		{[]string{"5.15"}, "no mirror", true},
	} {
		chosen, err := choose(test.names, debian)
		got := strings.Join(names(chosen), " ")
		if err != nil {
			got = err.Error()
		}
		if (err != nil) != test.fails || !strings.Contains(got, test.want) {
			t.Errorf("%q: got %s, want %s", test.names, got, test.want)
		}
	}
}

func TestMirrorsOf(t *testing.T) {
	sources := filepath.Join(t.TempDir(), "sources.list")
	text := "deb http://mirror.example/pub/debian/ bookworm main\ndeb https://other.example/ubuntu jammy main\n"
	if err := os.WriteFile(sources, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	found, err := mirrorsOf(t.Context(), sources)
	if err != nil || found["debian"] != "http://mirror.example/pub/debian" || found["ubuntu"] != "https://other.example/ubuntu" {
		t.Errorf("found %q, %v", found, err)
	}
	if _, err := mirrorsOf(t.Context(), sources+".absent"); err == nil {
		t.Error("no error for a file that is absent")
	}
}

// TestScript runs the job of a guest, but in a directory of the test.
func TestScript(t *testing.T) {
	dir := t.TempDir()
	job := script([]step{
		{name: "good", command: "echo '--- PASS: TestA'; echo '--- SKIP: TestB'; echo '    --- PASS: TestA/sub'"},
		{name: "bad", command: "echo '--- FAIL: TestC'; exit 1"},
		{name: "sanity", command: "echo 'Ran 76 of 103 Specs in 1 seconds'"},
		{name: poolOf("6.12"), command: "true"},
		{name: "killed", command: "kill -9 $$"},
	}, "")
	for _, name := range []string{"out", "src"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	job = strings.NewReplacer("/tmp/out", dir+"/out", "cp -r /job/src /tmp/src", "true").Replace(job)
	_ = exec.Command("sh", "-c", job).Run()
	files := map[string]string{}
	written, err := os.ReadDir(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range written {
		data, err := os.ReadFile(filepath.Join(dir, "out", f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[f.Name()] = string(data)
	}
	all := outcomes([]step{{name: "good"}, {name: "bad"}, {name: "sanity"}, {name: poolOf("6.12")}, {name: "killed"}}, files)
	for name, want := range map[string]string{
		"good": "2 passed, 1 skipped", "bad": "**1 failed**, 0 passed", "sanity": "76 of 103 specs", poolOf("6.12"): "passed", "killed": "**did not end**",
	} {
		if got := all[name].String(); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	one := &result{Kernel: "1", Arch: "a", Outcomes: all}
	if err := one.wrong(); err == nil || !strings.Contains(err.Error(), "TestC") || !strings.Contains(err.Error(), "killed") || strings.Contains(err.Error(), "good") {
		t.Errorf("got %v", err)
	}
}

// TestRefused: a kernel below the floor is as it should be only if the driver says why it ends.
func TestRefused(t *testing.T) {
	for log, want := range map[string]bool{"Error: ... the system call mount_setattr ...": true, "panic": false} {
		files := map[string]string{refusal.name + ".log": log, refusal.name + ".end": "0 1"}
		if got := outcomes([]step{refusal}, files)[refusal.name].ok(); got != want {
			t.Errorf("%s: %v", log, got)
		}
	}
}

func TestWriteDocument(t *testing.T) {
	dir := t.TempDir()
	page := filepath.Join(dir, document)
	if err := os.WriteFile(page, []byte("# Head\n"+beginMark+"\nold\n"+finishMark+"\ntail\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	of := func(kernel, version string, passed int) *result {
		return &result{Kernel: kernel, Arch: "amd64", Version: version, Outcomes: map[string]outcome{"btrfs": {Passed: passed}}}
	}
	for _, fresh := range [][]*result{{of("6.12", "6.12.1", 3)}, {of("6.1", "6.1.1", 1), of("6.12", "6.12.2", 4)}} {
		if err := writeDocument(dir, fresh); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# Head\n", "\ntail\n", "| kernel | 6.1.1 | 6.12.2 |", "| `pkg/btrfs` | 1 passed | 4 passed |"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "old") || strings.Contains(string(text), "6.12.1") {
		t.Errorf("results that were replaced are in\n%s", text)
	}
}

// TestBoot has a script in the place of QEMU.
func TestBoot(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	for _, test := range []struct{ does, want string }{
		{`echo '[ 1.0] :: booted'; echo ':: done'`, ""},
		{`echo ':: booted'`, "ended early"},
		{`echo no kernel >&2; exit 1`, "no kernel"},
		{`exec sleep 1000`, "not off after"},
	} {
		if err := os.WriteFile(filepath.Join(bin, "qemu-system-x86_64"), []byte("#!/bin/sh\n"+test.does+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		patience := 5 * time.Minute
		if test.want == "not off after" {
			patience = 100 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		var said []string
		g := guest{arch: "amd64", dir: t.TempDir(), accel: "tcg", log: func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }}
		err := g.boot(ctx, nil)
		cancel()
		if got := fmt.Sprint(err); !strings.Contains(got, test.want) || (err == nil) != (test.want == "") {
			t.Errorf("%s: got %v, want %q", test.does, err, test.want)
		}
		if strings.Contains(test.does, "booted") && strings.Join(said, " ") != "booted" {
			t.Errorf("%s: said %q", test.does, said)
		}
	}
}
