package meta

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// LedgerXattr is the extended attribute that contains a subvolume's record. It is on the
// directory that contains the subvolume. Only CAP_SYS_ADMIN can access the trusted
// namespace, and pods cannot reach the directory.
const LedgerXattr = "trusted.btrfs-csi"

// MaxRecordSize is the largest encoded record in bytes. An xattr must fit into a leaf of
// the smallest node size that mkfs.btrfs supports (4 KiB).
const MaxRecordSize = 3500

// MaxMembers is the largest number of members of a group.
const MaxMembers = 64

// Versions of the encoding. There is a new one when older readers would misunderstand a
// record. Each record has the lowest version that describes it, so that an older driver
// still reads the others.
const (
	firstVersion   = 1
	contentVersion = 2 // the subvolume contains a disk file: an older reader would mount its directory
	latestVersion  = contentVersion
)

// Errors of DecodeRecord and Record.Encode.
var (
	// ErrDamaged means that a record is truncated or invalid.
	ErrDamaged = errors.New("record is damaged")
	// ErrNewer means that a later release has written the record.
	ErrNewer = errors.New("record was written by a newer version")
	// ErrTooLarge means that a record has more than MaxRecordSize bytes.
	ErrTooLarge = errors.New("record is too large")
)

// Kind is the use of a subvolume, and the name of its directory in a pool.
type Kind string

const (
	// Active is a read-write volume.
	Active Kind = "active"
	// Committed is a read-only snapshot.
	Committed Kind = "committed"
	// View is a read-only volume, made of a snapshot or of a volume.
	View Kind = "view"
)

// kindWords maps kinds to the words that users see.
var kindWords = map[Kind]string{Active: "Volume", Committed: "Snapshot", View: "ReadOnlyVolume"}

// String returns the word that users see. Records and directory names contain k itself.
func (k Kind) String() string {
	if word, ok := kindWords[k]; ok {
		return word
	}
	return string(k)
}

// Class is the namespace of an ID. CSI has one for volumes and one for snapshots.
type Class string

const (
	// Volumes contains the kinds Active and View.
	Volumes Class = "volume"
	// Snapshots contains the kind Committed.
	Snapshots Class = "snapshot"
)

// Class returns the class of k.
func (k Kind) Class() Class {
	if k == Committed {
		return Snapshots
	}
	return Volumes
}

// ReadOnly reports whether subvolumes of this kind are read-only.
func (k Kind) ReadOnly() bool { return k != Active }

// Kinds returns the kinds of a class.
func (c Class) Kinds() []Kind {
	if c == Snapshots {
		return []Kind{Committed}
	}
	return []Kind{Active, View}
}

// Ref identifies a volume or a snapshot of this node.
type Ref struct {
	Class Class  `json:"class"`
	ID    string `json:"id"`
}

// Volume returns the Ref of a volume.
func Volume(id string) Ref { return Ref{Volumes, id} }

// Snapshot returns the Ref of a snapshot.
func Snapshot(id string) Ref { return Ref{Snapshots, id} }

// IsZero reports whether r is empty.
func (r Ref) IsZero() bool { return r == Ref{} }

// String returns r as text, for example `volume "pvc-1"`.
func (r Ref) String() string { return fmt.Sprintf("%s %q", r.Class, r.ID) }

// State is the progress of creation.
type State string

const (
	// Creating lasts until everything in the record is on disk. If the subvolume is
	// missing, it was never created.
	Creating State = "creating"
	// Ready follows Creating. If the subvolume is missing, it is lost.
	Ready State = "ready"
)

// Parameters are properties of a subvolume from a StorageClass or VolumeSnapshotClass. The
// zero value means the filesystem's defaults.
type Parameters struct {
	// Compression is a value of the btrfs property "compression": zstd, zstd:1 to zstd:15,
	// zlib, zlib:1 to zlib:9, lzo or none.
	Compression string `json:"compression,omitempty"`
	// NoDataCow turns off copy on write, and with it checksums.
	NoDataCow bool `json:"nodatacow,omitempty"`
	// SkipNested allows a snapshot or clone of a volume with nested subvolumes, and leaves
	// these out. Without it such a snapshot fails.
	SkipNested bool `json:"skipNested,omitempty"`
}

// Record is the request by which a subvolume was made.
type Record struct {
	ID         string            `json:"id"`
	Name       string            `json:"name"` // from the CSI request
	Kind       Kind              `json:"kind"`
	Content    Content           `json:"content,omitempty"`
	State      State             `json:"state"`
	Size       int64             `json:"size"` // bytes; limit of a volume, and minimum size of its copies
	Created    time.Time         `json:"created"`
	Source     Ref               `json:"source,omitzero"` // volume or snapshot that was copied
	Parameters Parameters        `json:"parameters,omitzero"`
	Labels     map[string]string `json:"labels,omitempty"` // from the sidecars, for people: see Labels
	Group      Group             `json:"group,omitzero"`   // of a snapshot; zero for none
}

// Group is the group of a snapshot. All members of a group show one instant.
type Group struct {
	ID      string `json:"id"`      // ID of the group's name
	Member  int    `json:"member"`  // number of this member, from 0 on
	Members int    `json:"members"` // how many there are
}

// Refs returns the references of all members, in order.
func (g Group) Refs() []Ref {
	refs := make([]Ref, g.Members)
	for i := range refs {
		refs[i] = Snapshot(ID(MemberName(g.ID, i)))
	}
	return refs
}

// MemberName returns the name of a member of a group. A repeated request, which has only the name
// of the group, finds its members by it. Member 0 is made first and removed last, so that it is
// there while any other is.
func MemberName(group string, member int) string { return fmt.Sprintf("%s-%d", group, member) }

// Ref returns the reference of r.
func (r Record) Ref() Ref { return Ref{r.Kind.Class(), r.ID} }

// envelope adds the version of the encoding to a record.
type envelope struct {
	Version int             `json:"version"`
	Record  json.RawMessage `json:"record"`
}

// Encode returns r for the ledger. The format is JSON, readable with getfattr. Errors:
// ErrTooLarge.
func (r Record) Encode() ([]byte, error) {
	record, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	version := firstVersion
	if r.Content != Files {
		version = contentVersion
	}
	data, err := json.Marshal(envelope{Version: version, Record: record})
	if err != nil {
		return nil, err
	}
	if len(data) > MaxRecordSize {
		return nil, fmt.Errorf("record of %d bytes, at most %d fit: %w", len(data), MaxRecordSize, ErrTooLarge)
	}
	return data, nil
}

// DecodeRecord decodes the result of Encode. Errors: ErrDamaged, ErrNewer.
func DecodeRecord(data []byte) (Record, error) {
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if e.Version > latestVersion {
		return Record{}, fmt.Errorf("version %d, this driver reads up to %d: %w", e.Version, latestVersion, ErrNewer)
	}
	var r Record
	if err := json.Unmarshal(e.Record, &r); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if e.Version < firstVersion || !r.valid() {
		return Record{}, fmt.Errorf("%w: a field is missing or senseless", ErrDamaged)
	}
	return r, nil
}

func (r Record) valid() bool {
	return ValidID(r.ID) && r.Name != "" && r.Size >= 0 &&
		(r.Kind == Active || r.Kind == Committed || r.Kind == View) &&
		r.Content.valid() &&
		(r.State == Creating || r.State == Ready) &&
		r.validGroup() &&
		(r.Source.IsZero() || ValidID(r.Source.ID) && (r.Source.Class == Volumes || r.Source.Class == Snapshots))
}

func (r Record) validGroup() bool {
	g := r.Group
	return g == (Group{}) ||
		r.Kind == Committed && ValidID(g.ID) && g.Member >= 0 && g.Member < g.Members && g.Members <= MaxMembers && r.Name == MemberName(g.ID, g.Member)
}

// Lineage is what btrfs stores about a subvolume (BTRFS_IOC_GET_SUBVOL_INFO). UUIDs have 36
// characters, or are empty.
type Lineage struct {
	SubvolumeID    uint64 `json:"subvolumeID"`
	UUID           string `json:"uuid"`
	ParentUUID     string `json:"parentUUID,omitempty"`
	ReceivedUUID   string `json:"receivedUUID,omitempty"`
	CreatedTransid uint64 `json:"createdTransid"` // transaction; equal for snapshots of one instant
}

// Entry is one subvolume of one pool.
type Entry struct {
	Record
	Lineage
	Pool   string `json:"pool"`   // name on this node
	PoolID string `json:"poolID"` // UUID, the same on all nodes
}

// hashPrefix begins every ID that is a hash. A name with this prefix is always hashed, so a
// name never equals the hash of another.
const hashPrefix = "sha256-"

// safeName matches names that are safe as directory name, CSI handle and unquoted shell
// word.
var safeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// ID returns the ID for a CSI name. A safe name is its own ID, and any other name is
// hashed. The same name always has the same ID, so a retry finds its own work. No text of a
// user becomes a path.
func ID(name string) string {
	if safeName.MatchString(name) && !strings.HasPrefix(name, hashPrefix) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return hashPrefix + hex.EncodeToString(sum[:])
}

// ValidID reports whether id may be a result of ID.
func ValidID(id string) bool { return safeName.MatchString(id) }
