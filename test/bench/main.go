package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	cmd := newCommand()
	cmd.AddCommand(newReport())
	err := cmd.ExecuteContext(ctx)
	stop()
	if err != nil {
		os.Exit(1)
	}
}

// options are the flags of the benchmark.
type options struct {
	quick  bool
	list   bool
	only   string
	output string
	docs   string
	dir    string
	binary string
}

func newCommand() *cobra.Command {
	o := options{}
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure btrfs-csi beside containerd's snapshotter, the raw ioctls and a copy",
		Long: `Bench measures everything in one run, on filesystems that it makes in sparse
files, and compares the numbers. It needs root.`,
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		RunE:         func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.quick, "quick", false, "only what has to be shown: five minutes instead of an hour")
	f.BoolVar(&o.list, "list", false, "list the parts and measure nothing")
	f.StringVar(&o.only, "only", "", "run the parts whose name this regular expression matches")
	f.StringVar(&o.output, "output", "", "file to write the rows to, as JSON")
	f.StringVar(&o.docs, "docs", "", "directory to write benchmarks.md, its plots and the rows to")
	f.StringVar(&o.dir, "dir", "/var/tmp", "directory with room for the filesystems, 20 GiB")
	f.StringVar(&o.binary, "binary", "", "the driver to measure, instead of one that is built")
	return cmd
}

func (o options) run(ctx context.Context) error {
	began := time.Now()
	only, err := regexp.Compile(o.only)
	if err != nil {
		return fmt.Errorf("--only: %w", err)
	}
	parts := choose(o.parts(), only)
	if len(parts) == 0 {
		return fmt.Errorf("--only %q: no part has such a name; --list prints them", o.only)
	}
	if o.list {
		for _, p := range parts {
			fmt.Println(p.name)
		}
		return nil
	}
	if o.docs != "" && o.output == "" {
		o.output = rowsIn(o.docs)
	}
	rows, err := o.measure(ctx, parts)
	if err != nil {
		return err
	}
	printTable(os.Stdout, rows)
	fmt.Fprintf(os.Stderr, "It took %s.\n", time.Since(began).Round(time.Second))
	if o.docs == "" {
		return nil
	}
	return writeDocs(o.docs, rows)
}

func (o options) parts() []part {
	if o.quick {
		return quickParts()
	}
	return fullParts()
}

// measure writes the rows after every part, since all parts take an hour.
func (o options) measure(ctx context.Context, parts []part) (all []row, err error) {
	b, err := newBench(ctx, o.dir, o.binary, os.Stderr)
	if err != nil {
		return nil, err
	}
	err = b.run(ctx, parts, func(rows []row) error {
		all = append(all, rows...)
		if o.output == "" {
			return nil
		}
		return writeRows(o.output, all)
	})
	return all, errors.Join(err, b.close())
}

// rowsIn returns the path of the numbers to which the documents refer.
func rowsIn(docs string) string { return filepath.Join(docs, "benchmarks.json") }

func newReport() *cobra.Command {
	var docs string
	cmd := &cobra.Command{
		Use:   "report FILE...",
		Short: "Write the table and the documents again, without measuring",
		Long:  "Report reads what bench --output wrote. Of rows of one name in several files the last counts.",
		Args:  cobra.MinimumNArgs(1), SilenceUsage: true,
		RunE: func(_ *cobra.Command, files []string) error {
			rows, err := readRows(files)
			if err != nil {
				return err
			}
			printTable(os.Stdout, rows)
			if docs == "" {
				return nil
			}
			return errors.Join(writeRows(rowsIn(docs), rows), writeDocs(docs, rows))
		},
	}
	cmd.Flags().StringVar(&docs, "docs", "", "directory to write benchmarks.md and its plots to")
	return cmd
}
