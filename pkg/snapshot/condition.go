package snapshot

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
)

// Condition is something about a volume that its users should know. Nothing is lost, and
// the driver changes nothing: somebody has made it so.
type Condition struct {
	Reason  string
	Message string
}

// Conditions returns those of a volume that its subvolume and its pool's mount show.
func (e *Engine) Conditions(_ context.Context, volume string) ([]Condition, error) {
	defer e.hold()()
	l, err := e.find(meta.Volume(volume))
	if err != nil || l.record.Kind != meta.Active {
		return nil, err
	}
	conditions, err := l.conditions()
	return conditions, l.explain(err)
}

func (l *located) conditions() (all []Condition, err error) {
	info, err := l.Info(l.slot)
	if err != nil {
		return nil, err
	}
	if info.ReadOnly {
		all = append(all, Condition{"SubvolumeReadOnly", l.madeReadOnly()})
	}
	files, err := l.SwapFiles(l.slot)
	if err != nil {
		return nil, err
	}
	if len(files) > 0 {
		all = append(all, Condition{"SwapFile", fmt.Sprintf("it holds active swap files, and can be neither copied nor deleted: swapoff %s", strings.Join(files, " "))})
	}
	if why := overruled(l.record.Parameters, l.MountOptions()); why != "" {
		all = append(all, Condition{"CompressionOverruled", why})
	}
	return all, nil
}

// madeReadOnly says what is to be done about a volume whose subvolume is read-only.
func (l *located) madeReadOnly() string {
	return fmt.Sprintf("its subvolume was made read-only, and pods cannot write: run btrfs property set %s ro false", l.SlotPath(l.slot))
}

// overruled says why the files of a volume are compressed otherwise than its parameters
// want, "" if they are not.
func overruled(want meta.Parameters, mountOptions []string) string {
	has := func(name string) bool {
		return slices.ContainsFunc(mountOptions, func(option string) bool { return option == name || strings.HasPrefix(option, name+"=") })
	}
	switch {
	case want.Compression == "none" && has("compress-force"):
		return "compression is none, but the pool is mounted with compress-force, which compresses all files: mount it with compress instead"
	case want.Compression != "" && want.Compression != "none" && has("nodatacow"):
		return fmt.Sprintf("compression is %s, but the pool is mounted with nodatacow, with which no file is compressed: mount it without", want.Compression)
	}
	return ""
}

// SwapFiles reads /proc/swaps. A path there is as the process that has made the swap file
// active saw it: one that leads elsewhere from here, or nowhere, is of no volume.
func (d *disk) SwapFiles(s Slot) (files []string, err error) {
	active, err := os.ReadFile("/proc/swaps")
	if os.IsNotExist(err) {
		return nil, nil // a kernel without swap
	}
	if err != nil {
		return nil, err
	}
	err = d.inSubvolume(s, func(path string) error {
		var volume unix.Stat_t
		if err := unix.Lstat(path, &volume); err != nil {
			return err
		}
		for _, file := range swapFiles(string(active)) {
			var st unix.Stat_t
			if err := unix.Lstat(file, &st); err == nil && st.Dev == volume.Dev {
				files = append(files, file)
			}
		}
		return nil
	})
	return files, err
}

// swapFiles returns the paths of the files in /proc/swaps.
func swapFiles(active string) (files []string) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(active) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[1] == "file" {
			files = append(files, unescape.Replace(fields[0]))
		}
	}
	return files
}

func (d *disk) MountOptions() []string { return d.options }

// readOptions is for when the disk has just answered. Whoever reads the mount options of a
// disk that does not answer keeps the mount table of the node locked for as long.
func (d *disk) readOptions() error {
	return d.inRoot(func(path string) error {
		dir, err := os.Open(path)
		if err != nil {
			return err
		}
		defer dir.Close()
		d.options, err = mount.Options(dir)
		return err
	})
}
