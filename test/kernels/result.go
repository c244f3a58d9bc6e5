package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// result is what came of a kernel.
type result struct {
	Kernel, Arch, Suite, Version, Progs, PageSize, Date, Commit string
	Outcomes                                                    map[string]outcome // by step

	release release
	system  system
	dir     string
	pool    string // file with the pool that it wrote; empty: none
}

// outcomes reads what a guest has left of its steps.
func outcomes(steps []step, files map[string]string) map[string]outcome {
	all := map[string]outcome{}
	for _, s := range steps {
		o := outcome{Code: -1}
		var seconds int
		if _, err := fmt.Sscanf(files[s.name+".end"], "%d %d", &o.Code, &seconds); err != nil {
			o.Code = -1
		}
		o.Took = time.Duration(seconds) * time.Second
		o.read(files[s.name+".log"])
		if s.name == refusal.name && !strings.Contains(files[s.name+".log"], "mount_setattr") {
			o.Code = max(o.Code, 2) // it ended, but does not say why
		}
		all[s.name] = o
	}
	return all
}

// wrong returns an error that names the steps that failed.
func (r *result) wrong() error {
	var errs []error
	for name, o := range r.Outcomes {
		if !o.ok() {
			errs = append(errs, fmt.Errorf("kernel %s %s: %s: %s %s; see %s", r.Kernel, r.Arch, name, o, strings.Join(o.Failures, " "), r.dir))
		}
	}
	return errors.Join(errs...)
}

// table returns the results in Markdown, one kernel a column.
func table(all []*result) string {
	var b strings.Builder
	row := func(title string, cell func(*result) string) {
		cells := make([]string, len(all))
		empty := true
		for i, r := range all {
			cells[i] = cell(r)
			empty = empty && cells[i] == ""
		}
		if !empty {
			fmt.Fprintf(&b, "| %s | %s |\n", title, strings.Join(cells, " | "))
		}
	}
	row("", func(r *result) string { return r.Kernel + ", " + r.Arch })
	fmt.Fprintf(&b, "|%s\n", strings.Repeat("---|", len(all)+1))
	row("kernel", func(r *result) string { return r.Version })
	row("release", func(r *result) string { return r.Suite + ", " + r.Progs })
	row("page size", func(r *result) string { return r.PageSize })
	row("`serve`", func(r *result) string {
		if o, is := r.Outcomes[refusal.name]; is && o.ok() {
			return "refuses, and names `mount_setattr`"
		} else if is {
			return "**does not refuse**"
		}
		return ""
	})
	for _, s := range steps {
		row(s.title, func(r *result) string { return r.cell(s.name) })
	}
	row("makes a pool with data", func(r *result) string { return r.cell(writePool.name) })
	for _, writer := range all {
		row("serves the pool of "+writer.Kernel, func(r *result) string {
			if r.Arch != writer.Arch {
				return ""
			}
			return r.cell(poolOf(writer.Kernel))
		})
	}
	row("date, commit", func(r *result) string { return r.Date + ", " + r.Commit })
	return b.String()
}

func (r *result) cell(step string) string {
	if o, is := r.Outcomes[step]; is {
		return o.String()
	}
	return ""
}

// keep takes over what is known of the same kernel by steps that were not run again.
func (r *result) keep(known []*result) {
	for _, old := range known {
		if old.Kernel != r.Kernel || old.Arch != r.Arch || old.Version != r.Version {
			continue
		}
		for name, o := range old.Outcomes {
			if _, again := r.Outcomes[name]; !again {
				r.Outcomes[name] = o
			}
		}
	}
}

const (
	document   = "kernels.md"
	data       = "kernels.json"
	beginMark  = "<!-- The results: written by make test-kernels, not by hand. -->"
	finishMark = "<!-- End of the results. -->"
)

// writeDocument puts results in the place of the last ones for the same kernels, and writes the
// table of all.
func writeDocument(dir string, fresh []*result) error {
	var all []*result
	text, err := os.ReadFile(filepath.Join(dir, data))
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, r := range fresh {
		r.keep(all)
		all = slices.DeleteFunc(all, func(old *result) bool { return old.Kernel == r.Kernel && old.Arch == r.Arch })
	}
	all = append(all, fresh...)
	place := func(r *result) int {
		return slices.IndexFunc(releases, func(x release) bool { return x.kernel == r.Kernel })
	}
	slices.SortStableFunc(all, func(a, b *result) int {
		if c := strings.Compare(a.Arch, b.Arch); c != 0 {
			return c
		}
		return place(a) - place(b)
	})
	if text, err = json.MarshalIndent(all, "", " "); err != nil {
		return err
	}
	old, err := os.ReadFile(filepath.Join(dir, document))
	if err != nil {
		return err
	}
	head, rest, begins := strings.Cut(string(old), beginMark)
	_, tail, ends := strings.Cut(rest, finishMark)
	if !begins || !ends {
		return fmt.Errorf("%s lacks the lines %q and %q", document, beginMark, finishMark)
	}
	page := head + beginMark + "\n\n" + table(all) + "\n" + finishMark + tail
	return errors.Join(
		os.WriteFile(filepath.Join(dir, data), append(text, '\n'), 0o644),
		os.WriteFile(filepath.Join(dir, document), []byte(page), 0o644))
}
