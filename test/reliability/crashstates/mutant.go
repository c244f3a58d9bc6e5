package crashstates

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/test/reliability/writelog"
)

// mutant is a fault in a copy of the driver, by edits of its source. It breaks a promise
// that only a power cut shows.
type mutant struct {
	name  string
	edits []edit
}

// edit replaces text in one file. No two edits of a mutant have the same file.
type edit struct {
	file     string // in the driver's module
	old, new string // old occurs once in the file
}

const inSlot = "pkg/slot/"

var mutants = []mutant{
	{"the properties of a volume are not durable before its record says ready", []edit{{inSlot + "complete.go", `
		if err := l.syncProperties(commit); err != nil {
			return err
		}`, ""}}},
	{"a volume is acknowledged before its commit", []edit{{inSlot + "complete.go", `
	case commit:
		return l.sync()`, ""}}},
	{"a record says ready before the subvolume is made", []edit{{inSlot + "make.go",
		"l.Record.State = meta.Creating", "l.Record.State = meta.Ready"}}},
	{"the commit of a snapshot lacks its record", []edit{{inSlot + "make.go", `
	if err := l.write(); err != nil {
		return err
	}
	if from == nil {`, `
	if from == nil {
		if err := l.write(); err != nil {
			return err
		}
	}
	if from == nil {`}}},
	{"neither a start nor a repeated request commits what a killed driver has left", []edit{
		{inSlot + "erased.go", "err := s.commitErased(true)", "err := s.commitErased(false)"},
		{inSlot + "recover.go", `
	err := l.growDisk()
	if err == nil {
		err = l.session.Commit()
	}`, `
	err := l.growDisk()`},
	}},
	{"a removal is acknowledged before it is durable", []edit{{inSlot + "erase.go", `
	if err := l.destroy(); err != nil {
		return err
	}
	return l.sync()`, `
	return l.destroy()`}}},
	{"a removal destroys the subvolume before it renames the slot", []edit{{inSlot + "remove.go",
		"err := l.session.Move(at, to)", "var err error = unix.ENOSPC"}}},
	{"an expansion is acknowledged before its record is durable", []edit{{inSlot + "recover.go", `
	err := l.complete(false)
	if err == nil {
		err = l.session.Commit()
	}`, `
	err := l.complete(false)`}}},
	{"a copy keeps the limit of its source", []edit{{inSlot + "complete.go",
		"if l.Record.Kind == meta.Active {\n\t\tif err := l.setLimit()", "if l.Record.Kind == meta.Active && commit {\n\t\tif err := l.setLimit()"}}},
}

// write writes the changed files into a directory, and returns the overlay by which go build takes them
// instead of the originals.
func (m mutant) write(source, dir string) (overlay string, err error) {
	replace := map[string]string{}
	for i, e := range m.edits {
		original, err := filepath.Abs(filepath.Join(source, e.file))
		if err != nil {
			return "", err
		}
		text, err := os.ReadFile(original)
		if err != nil {
			return "", err
		}
		if n := strings.Count(string(text), e.old); n != 1 {
			return "", fmt.Errorf("mutant %q: %s has %d times, wanted is once:\n%s", m.name, original, n, e.old)
		}
		mutated := filepath.Join(dir, fmt.Sprintf("mutated%d.go", i))
		if err := os.WriteFile(mutated, []byte(strings.Replace(string(text), e.old, e.new, 1)), 0o600); err != nil {
			return "", err
		}
		replace[original] = mutated
	}
	data, err := json.Marshal(map[string]map[string]string{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay = filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, data, 0o600)
}

// Found is a mutant that was found, and the work that it took.
type Found struct {
	Name      string `json:"name"`
	Histories int    `json:"histories"`
	Runs      int    `json:"runs"`
	Message   string `json:"message"` // the first line of the failure
}

// foundBy matches the first line of the failure of a state, or of the driver without a power cut.
var foundBy = regexp.MustCompile(writelog.PowerGoes + ".*|" + afterCalls + ".*")

// Mutants builds one mutant after the other, and runs the crash states until one finds it. source is
// the directory of the driver's module, only a regular expression for the names of mutants.
func Mutants(ctx context.Context, source, dir, only string, log func(format string, args ...any)) ([]Found, error) {
	wanted, err := regexp.Compile(only)
	if err != nil {
		return nil, err
	}
	var all []Found
	for _, m := range mutants {
		if !wanted.MatchString(m.name) {
			continue
		}
		found, err := m.find(ctx, source, dir)
		if err != nil {
			return all, fmt.Errorf("%s: %w", m.name, err)
		}
		log("found after %d histories and %d states: %s", found.Histories, found.Runs, m.name)
		all = append(all, found)
	}
	return all, nil
}

// find builds the command with the mutant, and runs its crash states.
func (m mutant) find(ctx context.Context, source, parent string) (f Found, err error) {
	dir, err := os.MkdirTemp(parent, "mutant-")
	if err != nil {
		return f, err
	}
	defer os.RemoveAll(dir)
	overlay, err := m.write(source, dir)
	if err != nil {
		return f, err
	}
	program := filepath.Join(dir, "crash-states")
	build := exec.CommandContext(ctx, "go", "build", "-C", filepath.Join(source, "test", "reliability"), "-overlay", overlay, "-o", program, "./cmd/soak")
	if out, err := build.CombinedOutput(); err != nil {
		return f, fmt.Errorf("build: %w: %s", err, out)
	}
	var stderr strings.Builder
	run := exec.CommandContext(ctx, program, "crash-states", "--triples=0", "--interferences=1", "--seed=1", "--output=json")
	run.Stderr = &stderr
	out, err := run.Output()
	var report Report
	if jsonErr := json.Unmarshal(out, &report); jsonErr != nil {
		return f, fmt.Errorf("run: %w: %w: %s", err, jsonErr, stderr.String())
	}
	if err == nil {
		return f, fmt.Errorf("was not found by %s", report)
	}
	message := foundBy.FindString(stderr.String())
	if message == "" {
		return f, fmt.Errorf("failed otherwise: %s", stderr.String())
	}
	return Found{m.name, report.Histories, report.Counts.Runs, message}, nil
}
