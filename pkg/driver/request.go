package driver

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// Parameters of a StorageClass. A VolumeSnapshotClass may only have nestedSubvolumes.
const (
	paramPool             = "pool"
	paramCompression      = "compression"
	paramNoDataCow        = "nodatacow"
	paramNestedSubvolumes = "nestedSubvolumes"
)

// sidecarPrefix begins the parameters that CSI sidecars add.
const sidecarPrefix = "csi.storage.k8s.io/"

// maxNameBytes is CSI's general size limit of a string, in bytes.
const maxNameBytes = 128

var (
	// controlCharacters matches the characters that CSI bans from names.
	controlCharacters = regexp.MustCompile(`[\x{00}-\x{08}\x{0B}\x{0C}\x{0E}-\x{1F}\x{7F}-\x{9F}]`)

	compressionValue = regexp.MustCompile(`^(zstd(:([1-9]|1[0-5]))?|zlib(:[1-9])?|lzo|none)$`)
)

func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}

// required returns an error for an empty field.
func required(field, value string) error {
	if value == "" {
		return invalid("%s is missing", field)
	}
	return nil
}

// checkName checks a name against the rules of CSI.
func checkName(name string) error {
	switch {
	case name == "":
		return invalid("name is missing")
	case len(name) > maxNameBytes:
		return invalid("name has %d bytes, at most %d are allowed", len(name), maxNameBytes)
	case !utf8.ValidString(name):
		return invalid("name %q is not UTF-8", name)
	case controlCharacters.MatchString(name):
		return invalid("name %q contains control characters", name)
	}
	return nil
}

// classOptions is the result of reading the parameters of a class.
type classOptions struct {
	pool       string
	parameters meta.Parameters
	labels     map[string]string
}

// volumeParameters reads the parameters of CreateVolume.
func volumeParameters(params map[string]string) (classOptions, error) {
	return readParameters(params, paramPool, paramCompression, paramNoDataCow, paramNestedSubvolumes)
}

// snapshotParameters reads the parameters of CreateSnapshot.
func snapshotParameters(params map[string]string) (classOptions, error) {
	return readParameters(params, paramNestedSubvolumes)
}

// readParameters reads parameters and refuses unknown ones: a misspelt parameter would have
// no effect for the life of the volume.
func readParameters(params map[string]string, known ...string) (o classOptions, err error) {
	for _, key := range slices.Sorted(maps.Keys(params)) {
		value := params[key]
		if label, ok := strings.CutPrefix(key, sidecarPrefix); ok {
			o.addLabel(label, value)
			continue
		}
		if !slices.Contains(known, key) {
			return o, invalid("parameter %q is unknown; known are %s", key, strings.Join(known, ", "))
		}
		if err := o.set(key, value); err != nil {
			return o, err
		}
	}
	if o.parameters.NoDataCow && o.parameters.Compression != "" && o.parameters.Compression != "none" {
		return o, invalid("parameters %s and %s=%s contradict each other: data that is not copied on write cannot be compressed; leave one out",
			paramNoDataCow, paramCompression, o.parameters.Compression)
	}
	return o, nil
}

func (o *classOptions) addLabel(label, value string) {
	if !slices.Contains(meta.Labels, label) || value == "" {
		return
	}
	if o.labels == nil {
		o.labels = map[string]string{}
	}
	o.labels[label] = value
}

func (o *classOptions) set(key, value string) error {
	bad := func(wanted string) error {
		return invalid("parameter %s: %s is wanted, found %q", key, wanted, value)
	}
	switch key {
	case paramPool:
		if !pool.ValidName(value) {
			return bad("a pool's name of up to 63 lower-case letters, digits, dots and dashes")
		}
		o.pool = value
	case paramCompression:
		if !compressionValue.MatchString(value) {
			return bad("zstd, zstd:1 to zstd:15, zlib, zlib:1 to zlib:9, lzo or none")
		}
		o.parameters.Compression = value
	case paramNoDataCow:
		if value != "true" && value != "false" {
			return bad("true or false")
		}
		o.parameters.NoDataCow = value == "true"
	case paramNestedSubvolumes:
		if value != "refuse" && value != "skip" {
			return bad("refuse or skip")
		}
		o.parameters.SkipNested = value == "skip"
	}
	return nil
}

// sizeRange reads a capacity range. The engine refuses ranges that no size satisfies.
func sizeRange(r *csi.CapacityRange) (snapshot.Range, error) {
	if r.GetRequiredBytes() < 0 || r.GetLimitBytes() < 0 {
		return snapshot.Range{}, invalid("capacity range: required_bytes %d and limit_bytes %d must not be negative", r.GetRequiredBytes(), r.GetLimitBytes())
	}
	return snapshot.Range{Required: r.GetRequiredBytes(), Limit: r.GetLimitBytes()}, nil
}

// contentSource returns the source of a new volume, or the zero Ref.
func contentSource(s *csi.VolumeContentSource) (meta.Ref, error) {
	if s == nil {
		return meta.Ref{}, nil
	}
	var ref meta.Ref
	switch {
	case s.GetSnapshot() != nil:
		ref = meta.Snapshot(s.GetSnapshot().GetSnapshotId())
	case s.GetVolume() != nil:
		ref = meta.Volume(s.GetVolume().GetVolumeId())
	default:
		return ref, invalid("volume content source: a snapshot or a volume is wanted")
	}
	if ref.ID == "" {
		return ref, invalid("volume content source: the ID of the %s is missing", ref.Class)
	}
	return ref, nil
}

// singleNodeModes lists the access modes that all volumes support.
var singleNodeModes = []csi.VolumeCapability_AccessMode_Mode{
	csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER,
}

// fsTypes are the filesystems that pods get.
var fsTypes = []string{meta.Files.Filesystem(), meta.Ext4.Filesystem(), meta.XFS.Filesystem()}

// wanted is the content of a volume that a capability wants.
type wanted struct {
	content meta.Content
	any     bool // any filesystem will do, since none is named
}

// wantedContent returns what a checked capability wants.
func wantedContent(c *csi.VolumeCapability) wanted {
	if c.GetBlock() != nil {
		return wanted{content: meta.Block}
	}
	switch c.GetMount().GetFsType() {
	case meta.Ext4.Filesystem():
		return wanted{content: meta.Ext4}
	case meta.XFS.Filesystem():
		return wanted{content: meta.XFS}
	case "":
		return wanted{any: true}
	}
	return wanted{}
}

// fits returns an error if a volume does not have what is wanted.
func (w wanted) fits(entry meta.Entry) error {
	if w.content == entry.Content || w.any && entry.Content != meta.Block {
		return nil
	}
	return fmt.Errorf("volume %q is %s, and %s is wanted: use the volume mode and the fsType with which it was made", entry.ID, described(entry.Content), described(w.content))
}

// described returns what a volume is, for messages.
func described(content meta.Content) string {
	if content == meta.Block {
		return "a block volume (volume mode Block)"
	}
	return fmt.Sprintf("mounted as %s (volume mode Filesystem)", content.Filesystem())
}

// checkCapability refuses capabilities that no volume has. With readOnlyMany it allows
// readers on many nodes, for a copy that nobody writes to. Its pods still run on its own
// node only.
func checkCapability(c *csi.VolumeCapability, readOnlyMany bool) error {
	if c == nil {
		return invalid("volume capability is missing")
	}
	m := c.GetMount()
	if m == nil && c.GetBlock() == nil {
		return invalid("volume capability: access type mount or block is wanted")
	}
	if t := m.GetFsType(); t != "" && !slices.Contains(fsTypes, t) {
		return invalid("filesystem type %q is not supported; leave it out for btrfs, or use %s", t, strings.Join(fsTypes, ", "))
	}
	for _, flag := range m.GetMountFlags() {
		if !slices.Contains(mount.FlagNames(), flag) {
			return invalid("mount flag %q is not supported; supported are %s", flag, strings.Join(mount.FlagNames(), ", "))
		}
	}
	if slices.Contains(m.GetMountFlags(), "ro") && slices.Contains(m.GetMountFlags(), "rw") {
		return invalid("mount flags ro and rw contradict each other")
	}
	return checkAccessMode(c.GetAccessMode().GetMode(), readOnlyMany)
}

func checkAccessMode(mode csi.VolumeCapability_AccessMode_Mode, readOnlyMany bool) error {
	switch {
	case mode == csi.VolumeCapability_AccessMode_UNKNOWN:
		return invalid("volume capability: access mode is missing")
	case slices.Contains(singleNodeModes, mode):
		return nil
	case mode == csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY && readOnlyMany:
		return nil
	case mode == csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY:
		return invalid("access mode %s is only supported for a volume made from a snapshot or another volume", mode)
	}
	return invalid("access mode %s is not supported: a volume lives on one node; use ReadWriteOnce or ReadWriteOncePod", mode)
}

// onlyReads reports whether all capabilities are read-only.
func onlyReads(caps []*csi.VolumeCapability) bool {
	return !slices.ContainsFunc(caps, func(c *csi.VolumeCapability) bool { return !readOnlyMode(c) })
}

func readOnlyMode(c *csi.VolumeCapability) bool {
	mode := c.GetAccessMode().GetMode()
	return mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY ||
		mode == csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
}

// mountOptions returns the options of a bind mount, and resolves ro and rw.
func mountOptions(c *csi.VolumeCapability, readOnly bool) []string {
	options := slices.DeleteFunc(slices.Clone(c.GetMount().GetMountFlags()), func(f string) bool { return f == "ro" || f == "rw" })
	if readOnly || readOnlyMode(c) || slices.Contains(c.GetMount().GetMountFlags(), "ro") {
		options = append(options, "ro")
	}
	return options
}

// There is one topology key for each pool, with the same value on all nodes. So the keys of
// a node are the set of its pools.
const (
	// TopologyPrefix precedes the pool's ID in a topology key.
	TopologyPrefix = "topology." + Name + "/"
	// TopologyValue is the value of every topology key.
	TopologyValue = "true"
)

func topologyOf(poolID string) *csi.Topology {
	return &csi.Topology{Segments: map[string]string{TopologyPrefix + poolID: TopologyValue}}
}

// poolsOf returns the IDs of the pools in the requisite topologies, or nil without a
// requirement. It ignores keys of other drivers.
func poolsOf(requisite []*csi.Topology) []string {
	if len(requisite) == 0 {
		return nil
	}
	ids := []string{}
	for _, t := range requisite {
		for key, value := range t.GetSegments() {
			if id, ours := strings.CutPrefix(key, TopologyPrefix); ours && value == TopologyValue {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}
