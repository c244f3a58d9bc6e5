package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/btrfs-csi/btrfs-csi/build/image/debian"
)

func main() {
	syscall.Umask(0o022) // everybody may read the files
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	command := &cobra.Command{Use: "image", Short: "Make the container image of btrfs-csi", SilenceUsage: true}
	command.AddCommand(rootCommand(), toolchainCommand(), archiveCommand(), indexCommand(), bundleCommand(), pushCommand())
	if err := command.ExecuteContext(ctx); err != nil {
		os.Exit(1) //nolint:gocritic // nothing is left to clean up
	}
}

// build has the flags for Debian packages.
type build struct {
	arch, work, sources string
	snapshot            bool
}

func (b *build) flags(c *cobra.Command) {
	c.Flags().StringVar(&b.work, "work", "", "directory that keeps the packages, and gets what is made of them")
	c.Flags().StringVar(&b.sources, "sources", "", "sources file of apt, instead of those of this machine")
	c.Flags().BoolVar(&b.snapshot, "snapshot", false, "take Debian's packages as they were two midnights before SOURCE_DATE_EPOCH, from its archive of snapshots")
	c.MarkFlagsMutuallyExclusive("sources", "snapshot")
	required(c, "work")
}

func (b *build) archFlag(c *cobra.Command) {
	c.Flags().StringVar(&b.arch, "arch", "", "architecture: amd64 or arm64")
	required(c, "arch")
}

func required(c *cobra.Command, flags ...string) {
	for _, name := range flags {
		if err := c.MarkFlagRequired(name); err != nil {
			panic(err) // no such flag
		}
	}
}

func rootCommand() *cobra.Command {
	var b build
	c := &cobra.Command{
		Use:   "root",
		Short: "Make the root filesystem",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return b.root(c.Context(), func(target, string) error { return nil })
		},
	}
	b.flags(c)
	b.archFlag(c)
	return c
}

// root makes and checks the root filesystem, prints its packages, and calls use while no other
// process works in the directory.
func (b *build) root(ctx context.Context, use func(target, string) error) error {
	t, err := targetOf(b.arch)
	if err != nil {
		return err
	}
	d, err := parseDefinition(packagesFile)
	if err != nil {
		return err
	}
	work, locked, err := b.lock()
	if err != nil {
		return err
	}
	defer locked.Close()
	from, err := b.apt(work, t.arch)
	if err != nil {
		return err
	}
	packages, err := from.Download(ctx, d.packages)
	if err != nil {
		return err
	}
	root, used, err := makeRoot(ctx, d, t, packages, work)
	if err != nil {
		return err
	}
	for _, p := range used {
		fmt.Printf("%-16s %s\n", p.Name, p.Version)
	}
	if err := check(ctx, d, t, root); err != nil {
		return err
	}
	return use(t, root)
}

// apt returns what downloads the packages. Those of a snapshot have a cache of their own.
func (b *build) apt(work, arch string) (debian.Apt, error) {
	if !b.snapshot {
		return debian.Apt{Dir: filepath.Join(work, "apt"), Arch: arch, Sources: b.sources}, nil
	}
	commit, err := sourceDate()
	if err != nil {
		return debian.Apt{}, err
	}
	at := debian.SnapshotOf(commit)
	fmt.Printf("Debian as of %s\n", at.Format(time.RFC3339))
	sources := filepath.Join(work, "snapshot.list")
	return debian.Apt{Dir: filepath.Join(work, "snapshot"), Arch: arch, Sources: sources}, debian.WriteSnapshot(sources, at)
}

// lock creates the directory and waits until no other process works in it. Closing the file
// releases the lock.
func (b *build) lock() (work string, locked *os.File, err error) {
	if work, err = filepath.Abs(b.work); err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		return "", nil, err
	}
	f, err := os.OpenFile(filepath.Join(work, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return "", nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return work, f, nil
}

func archiveCommand() *cobra.Command {
	var (
		b build
		r release
	)
	c := &cobra.Command{
		Use:   "archive",
		Short: "Make the root filesystem and an archive of it and the binary",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return b.root(c.Context(), r.write)
		},
	}
	b.flags(c)
	b.archFlag(c)
	c.Flags().StringArrayVar(&r.names, "name", nil, "whole name of the image, with a tag; may be repeated")
	c.Flags().StringVar(&r.binary, "binary", "", "the driver for that architecture")
	c.Flags().StringVar(&r.license, "license", "", "the licence of the driver")
	c.Flags().StringVar(&r.version, "version", "dev", "version of the driver")
	c.Flags().StringVar(&r.revision, "revision", "unknown", "commit of the driver")
	c.Flags().StringVar(&r.archive, "output", "", "archive to write")
	required(c, "name", "binary", "license", "output")
	return c
}
