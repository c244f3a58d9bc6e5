package pool

import (
	"errors"
	"fmt"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
)

// Problem is a kind of fault of a pool, or of a path in it.
type Problem string

const (
	// Silent is a pool whose disk does not answer: see ErrSilent.
	Silent Problem = "Silent"
	// Unusable is a directory that should be a pool and cannot be used.
	Unusable Problem = "Unusable"
	// QuotaInconsistent means that limits have no effect. Repair: rescan.
	QuotaInconsistent Problem = "QuotaInconsistent"
	// ReadOnly is a pool that cannot be written: it was mounted read-only, or the kernel stopped
	// it after an error.
	ReadOnly Problem = "ReadOnly"
	// DeviceMissing is a pool that lacks a device.
	DeviceMissing Problem = "DeviceMissing"
	// BackingFull is a pool in a sparse file whose filesystem is nearly full. When that is full,
	// the kernel stops the pool.
	BackingFull Problem = "BackingFull"
	// MetadataFull is a pool that has too little space for metadata, for which the kernel allocates
	// chunks of their own. Nothing is created or expanded in it.
	MetadataFull Problem = "MetadataFull"
	// DeviceErrors is a pool whose devices have had errors.
	DeviceErrors Problem = "DeviceErrors"
)

// Status is the state of a pool.
type Status struct {
	Name    string            `json:"name"`
	ID      string            `json:"id,omitempty"`
	Error   string            `json:"error,omitempty"`  // why it cannot be used
	Silent  bool              `json:"silent,omitempty"` // its disk does not answer: see ErrSilent
	Space   btrfs.Space       `json:"space,omitzero"`
	Quota   btrfs.QuotaStatus `json:"quota,omitzero"`
	Devices []btrfs.Device    `json:"devices,omitempty"`
	// Rescans is the number of quota rescans that the driver started since the pool is in use.
	Rescans uint64 `json:"rescans,omitempty"`
	// Nesting is the number of volumes in which pods have made subvolumes, as of the last look.
	Nesting int `json:"nesting,omitempty"`
}

// ProblemOf returns Silent or Unusable, depending on why a pool cannot be used.
func ProblemOf(reason error) Problem {
	if errors.Is(reason, ErrSilent) {
		return Silent
	}
	return Unusable
}

// Reason returns the name of the problem for the health of a volume or a node. It begins with
// Pool where the reader would not know that it is about a pool.
func (p Problem) Reason() string {
	switch p {
	case Silent, Unusable, ReadOnly:
		return "Pool" + string(p)
	}
	return string(p)
}

// Condition is a fault of a pool as a whole.
type Condition struct {
	Problem Problem
	Message string // the fault and what to do, without numbers that keep changing
}

// Conditions returns the faults of a pool, the worst first, each Problem once.
func (s Status) Conditions() []Condition {
	if s.Silent { // nothing else is known
		return []Condition{{Silent, s.Error}}
	}
	var all []Condition
	add := func(wrong bool, problem Problem, format string, args ...any) {
		if wrong {
			all = append(all, Condition{problem, fmt.Sprintf(format, args...)})
		}
	}
	missing, failing := s.missingDevices(), s.failingDevices()
	add(s.Error != "", Unusable, "%s", s.Error)
	add(s.Space.ReadOnly, ReadOnly, "%s", whyReadOnly(s.Space.Room, failing))
	add(missing != "", DeviceMissing, "devices are missing: %s: replace them", missing)
	add(backingFull(s.Space.Room), BackingFull, "%s", s.backingDetail())
	add(metadataFull(s.Space.Room), MetadataFull, "%s", s.metadataDetail())
	add(s.Quota.Inconsistent, QuotaInconsistent, "sizes are not enforced until the driver has rescanned the quota")
	add(failing != "", DeviceErrors, "devices had errors: %s: check them, then reset the counters with btrfs device stats --reset", failing)
	return all
}

// Capacity returns how much may be promised to new volumes, in bytes.
func (s Status) Capacity() int64 { return beyondHeadroom(s.Space.Room) }

// MetadataHeadroom returns how much metadata new volumes leave free, in bytes.
func (s Status) MetadataHeadroom() int64 {
	_, metadata := headroom(s.Space.Size)
	return metadata
}

// State returns the worst Problem of the pool and its message, or "Ready" and Note.
func (s Status) State() (state, message string) {
	if all := s.Conditions(); len(all) > 0 {
		return string(all[0].Problem), all[0].Message
	}
	return "Ready", s.Note()
}

// DevicesMissing returns the number of missing devices.
func (s Status) DevicesMissing() (n int) {
	for _, d := range s.Devices {
		if d.Missing {
			n++
		}
	}
	return n
}

// DeviceErrors returns the sum of all error counters of all devices.
func (s Status) DeviceErrors() (n uint64) {
	for _, d := range s.Devices {
		n += d.Errors()
	}
	return n
}

// Note returns what users should know of a pool without faults; empty for nothing.
func (s Status) Note() string {
	if b := s.Space.Backing; b != nil {
		return fmt.Sprintf("the file %s has %d bytes, and its filesystem has not the room for all of them: free space there; the capacity of the pool is what is left there",
			b.Path, b.Size)
	}
	return ""
}

// whyReadOnly distinguishes a filesystem that the kernel stopped from one that was mounted
// read-only. The kernel writes its reason to its log only, so whyReadOnly names possible causes.
func whyReadOnly(room btrfs.Room, failing string) string {
	if !room.Stopped {
		return "the filesystem is mounted read-only: remount it read-write"
	}
	why := stoppedByKernel
	if failing != "" {
		why += "; devices had errors: " + failing
	}
	if b := room.Backing; b != nil {
		why += fmt.Sprintf("; the filesystem of the file %s has no room for all of it: free space there first", b.Path)
	}
	return why
}

const stoppedByKernel = "the kernel has stopped the filesystem after an error, which its log names: when the cause is mended, " +
	"unmount the filesystem everywhere and mount it again, or restart the node"

func (s Status) backingDetail() string {
	if s.Space.Backing == nil {
		return ""
	}
	return fmt.Sprintf("the filesystem of the file %s, which the pool lies in, has less than %d bytes left: free space there, "+
		"before the kernel finds none and stops the pool", s.Space.Backing.Path, backingHeadroom(s.Space.Room))
}

// freeMetadata is what gives space back to metadata.
const freeMetadata = "delete volumes, snapshots or files, add a device, or free chunks by btrfs balance start -dusage=20"

func (s Status) metadataDetail() string {
	return fmt.Sprintf("less than %d bytes are left for metadata, and nothing is created or expanded: %s", s.MetadataHeadroom(), freeMetadata)
}

func (s Status) missingDevices() string {
	var missing []string
	for _, d := range s.Devices {
		if d.Missing {
			missing = append(missing, fmt.Sprint(d.ID))
		}
	}
	return strings.Join(missing, ", ")
}

func (s Status) failingDevices() string {
	var failing []string
	for _, d := range s.Devices {
		if d.Errors() > 0 {
			failing = append(failing, fmt.Sprintf("%s (write %d, read %d, flush %d, corruption %d, generation %d)",
				d.Path, d.WriteErrors, d.ReadErrors, d.FlushErrors, d.CorruptionErrors, d.GenerationErrors))
		}
	}
	return strings.Join(failing, ", ")
}
