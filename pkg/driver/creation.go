package driver

import (
	"maps"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// creation is a checked CreateVolumeRequest.
type creation struct {
	spec   snapshot.Spec
	source meta.Ref // zero for none
	view   bool     // the request is for a read-only view of the source
}

// newCreation checks a CreateVolumeRequest.
func newCreation(request *csi.CreateVolumeRequest) (c creation, err error) {
	if err := checkName(request.GetName()); err != nil {
		return c, err
	}
	if c.source, err = contentSource(request.GetVolumeContentSource()); err != nil {
		return c, err
	}
	if err := checkUses(request.GetVolumeCapabilities(), c.source); err != nil {
		return c, err
	}
	if names := request.GetMutableParameters(); len(names) > 0 {
		return c, invalid("mutable_parameters %q: a volume's parameters cannot be changed; set them in the StorageClass", slices.Sorted(maps.Keys(names)))
	}
	content, err := contentOf(request.GetVolumeCapabilities())
	if err != nil {
		return c, err
	}
	options, err := volumeParameters(request.GetParameters())
	if err != nil {
		return c, err
	}
	if compression := options.parameters.Compression; content.IsDisk() && compression != "" && compression != "none" {
		return c, invalid("parameter %s=%s has no effect on %s: its data is written by direct I/O, which btrfs does not compress; leave it out", paramCompression, compression, content)
	}
	size, err := sizeRange(request.GetCapacityRange())
	c.spec = snapshot.Spec{
		Name: request.GetName(), Pool: options.pool, Allowed: poolsOf(request.GetAccessibilityRequirements().GetRequisite()),
		Content: content, Size: size, Parameters: options.parameters, Labels: options.labels,
	}
	c.view = !c.source.IsZero() && onlyReads(request.GetVolumeCapabilities())
	return c, err
}

// contentOf returns the content of a volume with these capabilities.
func contentOf(capabilities []*csi.VolumeCapability) (meta.Content, error) {
	first := wantedContent(capabilities[0]).content
	for _, c := range capabilities {
		if other := wantedContent(c).content; other != first {
			return first, invalid("volume capabilities contradict each other: one is for a volume that is %s, another for one that is %s", described(first), described(other))
		}
	}
	return first, nil
}

// checkUses refuses capabilities that a volume with this source cannot have, and
// unsupported mount flags.
func checkUses(capabilities []*csi.VolumeCapability, source meta.Ref) error {
	if len(capabilities) == 0 {
		return invalid("volume capabilities are missing")
	}
	copied := !source.IsZero()
	for _, capability := range capabilities {
		if _, err := newUse(capability, false, copied); err != nil {
			return err
		}
	}
	return nil
}

// expansion checks the fields that ControllerExpandVolume and NodeExpandVolume share.
func expansion(size *csi.CapacityRange, capability *csi.VolumeCapability) (snapshot.Range, error) {
	if capability != nil {
		if err := checkCapability(capability, true); err != nil {
			return snapshot.Range{}, err
		}
	}
	return sizeRange(size)
}

// newCommit checks a CreateSnapshotRequest.
func newCommit(request *csi.CreateSnapshotRequest) (snapshot.Spec, error) {
	if err := checkName(request.GetName()); err != nil {
		return snapshot.Spec{}, err
	}
	if err := required("source_volume_id", request.GetSourceVolumeId()); err != nil {
		return snapshot.Spec{}, err
	}
	if request.GetAccessibilityRequirements() != nil {
		return snapshot.Spec{}, invalid("accessibility_requirements of a snapshot are not supported: it lies beside its volume; leave them out")
	}
	options, err := snapshotParameters(request.GetParameters())
	return snapshot.Spec{Name: request.GetName(), Parameters: options.parameters, Labels: options.labels}, err
}
