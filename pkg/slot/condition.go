package slot

import (
	"fmt"
	"slices"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// VolumeCondition is a state of a volume that its users should know. No data is lost. Somebody caused
// it on purpose, so the driver changes nothing.
type VolumeCondition struct {
	Reason  string
	Message string
}

// Conditions returns the conditions of a volume that its subvolume and the mount of its pool
// show.
func (l *Slot) Conditions() (all []VolumeCondition, err error) {
	if l.Record.Kind != meta.Active {
		return nil, nil
	}
	if l.infoErr != nil {
		return nil, l.session.Explain(l.infoErr)
	}
	if why := l.MadeReadOnly(); why != "" {
		all = append(all, VolumeCondition{"SubvolumeReadOnly", why})
	}
	files, err := l.session.SwapFiles(l.At)
	if err != nil {
		return nil, err
	}
	if len(files) > 0 {
		all = append(all, VolumeCondition{"SwapFile", fmt.Sprintf("it contains active swap files, and can be neither copied nor deleted: swapoff %s", strings.Join(files, " "))})
	}
	for _, fault := range l.faultsOfDisk() {
		all = append(all, VolumeCondition{string(fault.Problem), fault.Detail})
	}
	if why := l.nearLimit(); why != "" {
		all = append(all, VolumeCondition{"DiskFileHoldsMore", why})
	}
	if why := overruled(l.Record.Parameters, l.session.MountOptions()); why != "" {
		all = append(all, VolumeCondition{"CompressionOverruled", why})
	}
	return all, nil
}

// nearLimit returns why a disk file may soon get no more space from its limit, "" if it does.
func (l *Slot) nearLimit() string {
	if !l.Record.Content.IsDisk() {
		return ""
	}
	usage, err := l.Usage()
	if err != nil || usage.Limit == 0 || usage.Used < usage.Limit/10*9 {
		return ""
	}
	return fmt.Sprintf("its disk file takes %d bytes, since extents that are overwritten in part take space as a whole; at %d bytes pods get I/O errors: "+
		"run btrfs filesystem defragment %s/disk, which unshares it from its snapshots, or expand the volume", usage.Used, usage.Limit, l.Path())
}

// MadeReadOnly returns what to do about a read-write volume whose subvolume somebody made
// read-only; empty for any other.
func (l *Slot) MadeReadOnly() string {
	if l.Record.Kind.ReadOnly() || !l.info.ReadOnly {
		return ""
	}
	return fmt.Sprintf("its subvolume was made read-only, and pods cannot write: run btrfs property set %s ro false", l.Path())
}

// overruled returns why the mount options overrule the compression of a volume, "" if they do
// not.
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
