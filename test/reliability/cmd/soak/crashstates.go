package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/crashstates"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/fsyncs"
	"github.com/btrfs-csi/btrfs-csi/test/testkit"
)

func newCrashStates() *cobra.Command {
	o := crashstates.Options{}
	var docs, source string
	var out output
	cmd := &cobra.Command{
		Use:   "crash-states",
		Short: "Start a driver on every state that a power cut leaves of short histories",
		Long: `Crash-states records short histories of calls on disks that log each write and each
flush. It then mounts every state that a power cut leaves, starts a driver on it, and
compares it with what was acknowledged. It fails at the first thing that is not as it
should be. It wants root, and leaves nothing behind.`,
		Example: `  # A history that has failed, again
  crash-states --only 'quota full: create of a class; somebody commits before step 4'`,
		Args: cobra.NoArgs, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check(); err != nil {
				return err
			}
			return inNamespace(func() error {
				o.Log = progress(cmd.ErrOrStderr())
				write := func(crashstates.Report) error { return nil }
				if docs != "" {
					document, err := openDocument(docs)
					if err != nil {
						return err
					}
					write = document.writeCrashStates
				}
				var report crashstates.Report
				err := testkit.InDirectory(o.Dir, "crash-states", func(dir string) (err error) {
					o.Dir = dir
					report, err = crashstates.Run(cmd.Context(), o)
					if err == nil && source != "" {
						report.Mutants, err = crashstates.Mutants(cmd.Context(), source, dir, "", o.Log)
					}
					return err
				})
				if err := errors.Join(err, out.print(cmd.OutOrStdout(), report, report.String())); err != nil {
					return err
				}
				return write(report)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Binary, "binary", "", "the driver, which some states are started with; empty to start all in this process")
	f.IntVar(&o.Triples, "triples", -1, "how many histories of three calls to draw for each kind of quota; -1 for all")
	f.IntVar(&o.Interferences, "interferences", -1, "how many commits of others and kills to draw for each history of two or three calls; -1 for one of each before every step")
	f.StringVar(&o.Only, "only", "", "regular expression for the names of the histories to take")
	f.Uint64Var(&o.Seed, "seed", 0, "seed of a run to repeat; 0 for a random one")
	f.StringVar(&o.Dir, "dir", "", "directory to work in; empty for that of temporary files")
	f.StringVar(&source, "mutants", "", "directory of the driver's module, into copies of which faults are put that have to be found; empty for none")
	f.StringVar(&docs, "docs", "", "directory whose reliability.md gets the figures of a run that has passed")
	out.add(cmd)
	return cmd
}

func newMutants() *cobra.Command {
	var source, only string
	cmd := &cobra.Command{
		Use:   "mutants",
		Short: "Put faults into copies of the driver, and have the crash states find each",
		Args:  cobra.NoArgs, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return testkit.InDirectory("", "mutants", func(dir string) error {
				_, err := crashstates.Mutants(cmd.Context(), source, dir, only, func(format string, args ...any) { cmd.Printf(format+"\n", args...) })
				return err
			})
		},
	}
	cmd.Flags().StringVar(&source, "source", ".", "directory of the driver's module")
	cmd.Flags().StringVar(&only, "only", "", "regular expression for the names of the faults to put in")
	return cmd
}

func newFsyncs() *cobra.Command {
	o := fsyncs.Options{}
	var runs int
	cmd := &cobra.Command{
		Use:   "fsyncs",
		Short: "Find fsyncs of a btrfs that return before the disk has what they make durable",
		Long: `Fsyncs takes no driver. Several writers write and sync on a disk that logs each write,
while others commit. It then mounts every state that a power cut leaves, and prints each
fsync that returned although a state after it lacks what it makes durable.`,
		Args: cobra.NoArgs, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return inNamespace(func() error {
				all, early := 0, 0
				for range runs {
					var r fsyncs.Report
					err := testkit.InDirectory("", "fsyncs", func(dir string) (err error) {
						o.Dir = dir
						r, err = fsyncs.Run(cmd.Context(), o)
						return err
					})
					if err != nil {
						return err
					}
					all, early = all+r.Fsyncs, early+len(r.Early)
					for _, story := range r.Early {
						cmd.Println(story)
					}
					cmd.Printf("seed %d: %d of %d fsyncs returned early so far\n", o.Seed, early, all)
					o.Seed++
				}
				return nil
			})
		},
	}
	cmd.Flags().IntVar(&o.Writers, "writers", 6, "how many write at a time")
	cmd.Flags().IntVar(&o.Rounds, "rounds", 100, "how often each writes")
	cmd.Flags().IntVar(&runs, "runs", 10, "how many filesystems to do this to")
	cmd.Flags().Uint64Var(&o.Seed, "seed", 1, "seed of the first")
	return cmd
}

// inNamespace runs fn in a mount namespace of its own, since nobody else should wait for a disk
// that ends.
func inNamespace(fn func() error) (err error) {
	if code := btrfstest.Main(func() int { err = fn(); return 0 }); code != 0 && err == nil {
		os.Exit(code)
	}
	return err
}
