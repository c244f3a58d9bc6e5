package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"
)

// outputFlag is the flag -o: empty for a table, or json. Set refuses other formats before
// the command starts.
type outputFlag string

func (o *outputFlag) add(cmd *cobra.Command) {
	cmd.Flags().VarP(o, "output", "o", "output format: empty for a table, or json")
}

func (o *outputFlag) String() string { return string(*o) }
func (o *outputFlag) Type() string   { return "string" }

func (o *outputFlag) Set(format string) error {
	if format != "" && format != "json" {
		return fmt.Errorf("unknown output format %q; json is known", format)
	}
	*o = outputFlag(format)
	return nil
}

// print writes data as JSON, or the table of fill.
func (o *outputFlag) print(w io.Writer, data any, fill func(*table)) error {
	if *o == "json" {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(data)
	}
	t := &table{w: tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)}
	fill(t)
	return t.w.Flush()
}

// table prints aligned columns.
type table struct{ w *tabwriter.Writer }

func (t *table) row(cells ...string) {
	for i, cell := range cells {
		if cell == "" {
			cells[i] = "-"
		}
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

// size formats bytes like Kubernetes, in powers of 1024 with one decimal.
func size(bytes int64) string {
	const units = "KMGTPE"
	if bytes < 1024 {
		return fmt.Sprintf("%d", bytes)
	}
	value, unit := float64(bytes)/1024, 0
	for value >= 1024 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", value), ".0") + units[unit:unit+1] + "i"
}

// age formats the time since t like kubectl.
func age(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return duration.HumanDuration(time.Since(t))
}
