package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/test/reliability/crashstates"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/soak"
)

// section is a part of reliability.md that is written by a program, between two marks.
type section struct{ begin, end string }

var (
	soakSection  = section{"<!-- The figures of the last soak: written by make soak, not by hand. -->\n", "<!-- End of the figures. -->\n"}
	crashSection = section{"<!-- The figures of the last crash states: written by make crash-states, not by hand. -->\n", "<!-- End of the figures of crash states. -->\n"}
)

// document is reliability.md, which has places for figures.
type document struct{ dir string }

// openDocument returns the one in a directory.
func openDocument(dir string) (document, error) {
	d := document{dir}
	for _, s := range []section{soakSection, crashSection} {
		if _, err := d.with(s, ""); err != nil {
			return d, err
		}
	}
	return d, nil
}

func (d document) path() string { return filepath.Join(d.dir, "reliability.md") }

// with returns the document with other figures.
func (d document) with(s section, figures string) (string, error) {
	text, err := os.ReadFile(d.path())
	if err != nil {
		return "", err
	}
	next, err := s.replace(string(text), figures)
	if err != nil {
		return "", fmt.Errorf("%s: %w", d.path(), err)
	}
	return next, nil
}

func (d document) write(s section, figures string) error {
	text, err := d.with(s, figures)
	if err != nil {
		return err
	}
	return os.WriteFile(d.path(), []byte(text), 0o644)
}

// plotName is the file beside the document that shows the driver that was left alone.
const plotName = "reliability.svg"

// writeSoak writes the figures of a soak that has passed.
func (d document) writeSoak(r soak.Report) error {
	if err := os.WriteFile(filepath.Join(d.dir, plotName), []byte(r.Plot()), 0o644); err != nil {
		return err
	}
	return d.write(soakSection, r.Figures(plotName))
}

// writeCrashStates writes the figures of crash states that have passed.
func (d document) writeCrashStates(r crashstates.Report) error {
	return d.write(crashSection, r.Figures())
}

// replace replaces what stands between the marks.
func (s section) replace(text, figures string) (string, error) {
	before, rest, begins := strings.Cut(text, s.begin)
	_, after, ends := strings.Cut(rest, s.end)
	if !begins || !ends {
		return "", fmt.Errorf("put the marks %q and %q back, between which the figures belong", s.begin, s.end)
	}
	return before + s.begin + figures + s.end + after, nil
}
