package snapshot

import (
	"fmt"
	"slices"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// Spec describes a new volume or snapshot.
type Spec struct {
	// Name identifies it. A second request with the same name is a repetition.
	Name string
	// Pool is the pool to make it in; empty for the source's, or the default one.
	Pool string
	// Allowed are the IDs of the pools in which it may be made; nil for any.
	Allowed []string
	// Content is what a volume contains. Commit ignores it: a snapshot has its volume's content.
	Content meta.Content
	// Size is the wanted size of a volume. Commit ignores it: a snapshot has its volume's size.
	Size       Range
	Parameters meta.Parameters
	Labels     map[string]string
}

func (s Spec) allows(poolID string) bool {
	return s.Allowed == nil || slices.Contains(s.Allowed, poolID)
}

// sameRequest returns ErrExists with every difference if a request differs from the earlier one
// of its name.
func sameRequest(entry meta.Entry, kind meta.Kind, spec Spec, source meta.Ref) error {
	have := entry.Record
	var differ []string
	add := func(format string, args ...any) { differ = append(differ, fmt.Sprintf(format, args...)) }
	if have.Name != spec.Name {
		add("name %q, not %q", have.Name, spec.Name)
	}
	if have.Kind != kind {
		add("kind %s, not %s", have.Kind, kind)
	}
	if kind != meta.Committed && have.Content != spec.Content {
		add("%s in it, not %s", have.Content, spec.Content)
	}
	if have.Source != source {
		add("source %v, not %v", have.Source, source)
	}
	if spec.Pool != "" && spec.Pool != entry.Pool {
		add("pool %q, not %q", entry.Pool, spec.Pool)
	}
	if !spec.allows(entry.PoolID) {
		add("pool %q (%s), not one of %q", entry.Pool, entry.PoolID, spec.Allowed)
	}
	if have.Parameters != spec.Parameters {
		add("parameters %+v, not %+v", have.Parameters, spec.Parameters)
	}
	if kind != meta.Committed && !spec.Size.fits(have.Size) {
		add("size %d, not between %d and %d", have.Size, spec.Size.Required, spec.Size.Limit)
	}
	if len(differ) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w: it has %s", have.Ref(), ErrExists, strings.Join(differ, "; "))
}
