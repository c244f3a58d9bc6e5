// Command soak kills a driver, cuts its power and leaves it alone, for half an hour, and writes the figures into
// docs/reliability.md. make soak runs it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/btrfs-csi/btrfs-csi/test/reliability/fuzz"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/soak"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/writelog"
)

func main() {
	writelog.Main()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	cmd := newSoak()
	cmd.AddCommand(newFuzz(), newCrashStates(), newMutants(), newFsyncs())
	err := cmd.ExecuteContext(ctx)
	stop()
	if err != nil {
		os.Exit(1)
	}
}

// output is the flag -o.
type output string

func (o *output) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP((*string)(o), "output", "o", "", "output format: empty for text, or json")
}

func (o *output) check() error {
	if *o != "" && *o != "json" {
		return fmt.Errorf("--output %q: unknown format; json is known", string(*o))
	}
	return nil
}

func (o *output) print(w io.Writer, data any, text string) error {
	if *o == "json" {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(data)
	}
	_, err := fmt.Fprint(w, text)
	return err
}

func newSoak() *cobra.Command {
	o := soak.Options{}
	var docs string
	var out output
	cmd := &cobra.Command{
		Use:   "soak",
		Short: "Kill a driver, cut its power and leave it alone, all under load, and check all data",
		Long: `Soak shares its time between drivers that are killed, drivers whose power is cut,
and one that is left alone, all under random load. It fails at the first thing that
is not as it should be, and then prints what happened to the object in question.
It wants root, and leaves nothing behind.`,
		Example: `  # Half an hour, and then a minute for each fuzz target
  soak --binary bin/btrfs-csi --fuzz 1m

  # A run that has failed, again
  soak --binary bin/btrfs-csi --time 5m --seed 1234`,
		Args: cobra.NoArgs, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check(); err != nil {
				return err
			}
			o.Log = progress(cmd.ErrOrStderr())
			write := func(soak.Report) error { return nil }
			if docs != "" { // check now that it can be written, not after half an hour
				document, err := openDocument(docs)
				if err != nil {
					return err
				}
				write = document.writeSoak
			}
			report, err := soak.Run(cmd.Context(), o)
			if err := errors.Join(err, out.print(cmd.OutOrStdout(), report, report.String())); err != nil {
				return err
			}
			return write(report)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Binary, "binary", "bin/btrfs-csi", "the driver")
	f.DurationVar(&o.Time, "time", 30*time.Minute, "time for all but the fuzzing")
	f.IntVar(&o.Kills, "kills", 1000, "how often to kill a driver, at most, in two fifths of the time")
	f.IntVar(&o.Cuts, "cuts", 500, "how often to cut the power, at most, in about a third of the time")
	f.DurationVar(&o.Fuzz, "fuzz", 0, "time to fuzz each target after that; 0 for none")
	f.StringVar(&o.Source, "source", ".", "directory of the driver's module, of which a driver is built in which others commit between two steps, and which has the fuzz targets")
	f.Uint64Var(&o.Seed, "seed", 0, "seed of a run to repeat; 0 for a random one")
	f.StringVar(&o.Dir, "dir", "/var/tmp", "directory with room for the pools, 20 GiB, not on btrfs")
	f.StringVar(&docs, "docs", "", "directory whose reliability.md gets the figures of a run that has passed")
	out.add(cmd)
	return cmd
}

// often is the least time between two lines of progress.
const often = 10 * time.Second

// progress prints log lines, and drops those that follow another one too soon.
func progress(w io.Writer) func(string, ...any) {
	var mu sync.Mutex // protects what follows
	began := time.Now()
	var last time.Time
	return func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(last) < often {
			return
		}
		last = time.Now()
		fmt.Fprintf(w, "%8v  %s\n", time.Since(began).Round(time.Second), fmt.Sprintf(format, args...))
	}
}

func newFuzz() *cobra.Command {
	var each time.Duration
	var source string
	var out output
	cmd := &cobra.Command{
		Use:   "fuzz",
		Short: "Run every native fuzz target for some time",
		Args:  cobra.NoArgs, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check(); err != nil {
				return err
			}
			done, err := fuzz.Run(cmd.Context(), source, each, progress(cmd.ErrOrStderr()))
			return errors.Join(err, out.print(cmd.OutOrStdout(), done, done.String()))
		},
	}
	cmd.Flags().DurationVar(&each, "time", time.Minute, "time for each target")
	cmd.Flags().StringVar(&source, "source", ".", "directory of the driver's module, which has the targets")
	out.add(cmd)
	return cmd
}
