package snapshot

import (
	"context"
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

// VolumeConditions returns the conditions of a volume that its subvolume and the mount of its pool
// show.
func (e *Engine) VolumeConditions(_ context.Context, volume string) ([]VolumeCondition, error) {
	defer e.pin()()
	l, err := e.find(meta.Volume(volume))
	if err != nil || l.record.Kind != meta.Active {
		return nil, err
	}
	return l.conditions()
}

func (l *located) conditions() (all []VolumeCondition, err error) {
	info, err := l.fs.Info(l.slot)
	if err != nil {
		return nil, err
	}
	if info.ReadOnly {
		all = append(all, VolumeCondition{"SubvolumeReadOnly", l.madeReadOnly()})
	}
	files, err := l.fs.SwapFiles(l.slot)
	if err != nil {
		return nil, err
	}
	if len(files) > 0 {
		all = append(all, VolumeCondition{"SwapFile", fmt.Sprintf("it contains active swap files, and can be neither copied nor deleted: swapoff %s", strings.Join(files, " "))})
	}
	if why := overruled(l.record.Parameters, l.fs.MountOptions()); why != "" {
		all = append(all, VolumeCondition{"CompressionOverruled", why})
	}
	return all, nil
}

// madeReadOnly returns what to do about a volume whose subvolume is read-only.
func (l *located) madeReadOnly() string {
	return fmt.Sprintf("its subvolume was made read-only, and pods cannot write: run btrfs property set %s ro false", l.fs.SlotPath(l.slot))
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
