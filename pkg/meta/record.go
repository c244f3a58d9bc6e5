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

// LedgerXattr is the extended attribute that holds a subvolume's record, on the
// directory that contains the subvolume. The trusted namespace is out of reach
// of everything without CAP_SYS_ADMIN, and the directory out of reach of pods.
const LedgerXattr = "trusted.btrfs-csi"

// MaxRecordSize bounds an encoded record, in bytes: an xattr must fit in one
// leaf of the smallest node size that mkfs.btrfs makes on any platform (4 KiB).
const MaxRecordSize = 3500

// recordVersion is raised when a reader of the previous version would
// misunderstand a record; fields that may be ignored do not raise it.
const recordVersion = 1

// Errors of DecodeRecord and Record.Encode.
var (
	// ErrDamaged is returned for a record that is not one of ours or is cut short.
	ErrDamaged = errors.New("record is damaged")
	// ErrNewer is returned for a record written by a later release.
	ErrNewer = errors.New("record was written by a newer version")
	// ErrTooLarge is returned for a record of more than MaxRecordSize bytes.
	ErrTooLarge = errors.New("record is too large")
)

// Kind says what a subvolume is used for; also the name of its area on disk.
type Kind string

const (
	// Active is a read-write volume.
	Active Kind = "active"
	// Committed is a read-only snapshot.
	Committed Kind = "committed"
	// View is a read-only volume on top of a snapshot.
	View Kind = "view"
)

// Class is the name space that an ID lives in: CSI has one for volumes and one
// for snapshots.
type Class string

const (
	// Volumes are the kinds Active and View.
	Volumes Class = "volume"
	// Snapshots are the kind Committed.
	Snapshots Class = "snapshot"
)

// Class returns the class that k belongs to.
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

// Ref names one volume or snapshot of this node.
type Ref struct {
	Class Class  `json:"class"`
	ID    string `json:"id"`
}

// Volume returns the Ref of a volume.
func Volume(id string) Ref { return Ref{Volumes, id} }

// Snapshot returns the Ref of a snapshot.
func Snapshot(id string) Ref { return Ref{Snapshots, id} }

// IsZero reports whether r names nothing.
func (r Ref) IsZero() bool { return r == Ref{} }

// String returns for example `volume "pvc-1"`.
func (r Ref) String() string { return fmt.Sprintf("%s %q", r.Class, r.ID) }

// State is how far the making of a subvolume has come.
type State string

const (
	// Creating is the state from the declaration until all that was declared
	// is on disk. A subvolume that is missing then was never there.
	Creating State = "creating"
	// Ready is the state afterwards. A subvolume that is missing then is lost.
	Ready State = "ready"
)

// Parameters are the properties of a subvolume that a StorageClass or a
// VolumeSnapshotClass sets. The zero value is the filesystem's default.
type Parameters struct {
	// Compression is a value of the property btrfs.compression: zstd, zstd:1
	// to zstd:15, zlib, zlib:1 to zlib:9, lzo or none.
	Compression string `json:"compression,omitempty"`
	// NoDataCow writes file data in place, without checksums.
	NoDataCow bool `json:"nodatacow,omitempty"`
	// SkipNested lets a snapshot or clone leave out subvolumes that were made
	// inside the volume, which otherwise refuse it.
	SkipNested bool `json:"skipNested,omitempty"`
}

// Record is what was asked for when a subvolume was made.
type Record struct {
	ID         string            `json:"id"`
	Name       string            `json:"name"` // as the CO gave it
	Kind       Kind              `json:"kind"`
	State      State             `json:"state"`
	Size       int64             `json:"size"` // bytes; the limit of an active, the least size of what is made from it
	Created    time.Time         `json:"created"`
	Source     Ref               `json:"source,omitzero"` // what it was made from
	Parameters Parameters        `json:"parameters,omitzero"`
	Labels     map[string]string `json:"labels,omitempty"` // for people: PVC name and namespace
}

// Ref returns the reference by which r is found.
func (r Record) Ref() Ref { return Ref{r.Kind.Class(), r.ID} }

// envelope wraps a record with the version of its encoding.
type envelope struct {
	Version int             `json:"version"`
	Record  json.RawMessage `json:"record"`
}

// Encode returns r as it is written to the ledger: JSON, so that getfattr shows
// an administrator what a directory is. It returns ErrTooLarge for more than
// MaxRecordSize bytes.
func (r Record) Encode() ([]byte, error) {
	record, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(envelope{Version: recordVersion, Record: record})
	if err != nil {
		return nil, err
	}
	if len(data) > MaxRecordSize {
		return nil, fmt.Errorf("record of %d bytes, at most %d fit: %w", len(data), MaxRecordSize, ErrTooLarge)
	}
	return data, nil
}

// DecodeRecord reads what Encode wrote. It returns ErrDamaged or ErrNewer.
func DecodeRecord(data []byte) (Record, error) {
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if e.Version > recordVersion {
		return Record{}, fmt.Errorf("version %d, this driver reads up to %d: %w", e.Version, recordVersion, ErrNewer)
	}
	var r Record
	if err := json.Unmarshal(e.Record, &r); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if e.Version < 1 || !r.valid() {
		return Record{}, fmt.Errorf("%w: a field is missing or senseless", ErrDamaged)
	}
	return r, nil
}

func (r Record) valid() bool {
	return ValidID(r.ID) && r.Name != "" && r.Size >= 0 &&
		(r.Kind == Active || r.Kind == Committed || r.Kind == View) &&
		(r.State == Creating || r.State == Ready) &&
		(r.Source.IsZero() || ValidID(r.Source.ID) && (r.Source.Class == Volumes || r.Source.Class == Snapshots))
}

// Lineage is what btrfs itself knows of a subvolume (BTRFS_IOC_GET_SUBVOL_INFO).
// UUIDs are in their 36-character form, empty where there is none.
type Lineage struct {
	SubvolumeID    uint64 `json:"subvolumeID"`
	UUID           string `json:"uuid"`
	ParentUUID     string `json:"parentUUID,omitempty"`
	ReceivedUUID   string `json:"receivedUUID,omitempty"`
	CreatedTransid uint64 `json:"createdTransid"` // equal for all snapshots taken at one instant
}

// Entry is one subvolume of one pool.
type Entry struct {
	Record
	Lineage
	Pool   string `json:"pool"`   // name, on this node
	PoolID string `json:"poolID"` // UUID, everywhere
}

// hashPrefix marks the IDs that are hashes of names. No name that begins with
// it is used as it stands, so the two can never meet.
const hashPrefix = "sha256-"

// safeName is what may be a directory's name, a CSI handle and a word in a
// shell without quoting.
var safeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// ID returns the ID for a CSI name: the name itself where it is a safe name
// already, else a hash of it. The same name always gives the same ID, so that a
// retry finds its own work without asking anyone, and no user's text becomes a
// path.
func ID(name string) string {
	if safeName.MatchString(name) && !strings.HasPrefix(name, hashPrefix) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return hashPrefix + hex.EncodeToString(sum[:])
}

// ValidID reports whether id can have come from ID.
func ValidID(id string) bool { return safeName.MatchString(id) }
