package snapshotter

import (
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/errdefs"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// The labels of a record. labelKind marks the snapshots of this package. It differs from the kind of the
// record for a view without a parent, which the engine has as an active.
const (
	labelKind   = "containerd/kind"
	labelParent = "containerd/parent"
	labelPrefix = "containerd/label/"
)

// labelsOf returns the labels of a record. As everywhere in containerd, a label without a value is
// dropped.
func labelsOf(n node, labels map[string]string) map[string]string {
	record := map[string]string{labelKind: n.kind.String()}
	if n.parent != "" {
		record[labelParent] = n.parent
	}
	for key, value := range labels {
		if value != "" {
			record[labelPrefix+key] = value
		}
	}
	return record
}

// infoOf decodes a record; false if it is not of this package.
func infoOf(entry meta.Entry) (snapshots.Info, bool) {
	info := snapshots.Info{
		Kind: snapshots.ParseKind(entry.Labels[labelKind]), Name: entry.Name, Parent: entry.Labels[labelParent],
		Labels: map[string]string{}, Created: entry.Created, Updated: entry.Created,
	}
	for key, value := range entry.Labels {
		if label, ok := strings.CutPrefix(key, labelPrefix); ok {
			info.Labels[label] = value
		}
	}
	return info, info.Kind != snapshots.KindUnknown
}

// options evaluates the options of Prepare, View or Commit.
func options(opts []snapshots.Opt) (snapshots.Info, error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return info, err
		}
	}
	return info, nil
}

// setFields returns a function that sets the fields in fieldpaths to those of wanted. Without fieldpaths
// it sets all fields that can be changed.
func setFields(wanted snapshots.Info, fieldpaths []string) func(*snapshots.Info) error {
	if len(fieldpaths) == 0 {
		fieldpaths = []string{"labels"}
	}
	return func(info *snapshots.Info) error {
		for _, path := range fieldpaths {
			label, one := strings.CutPrefix(path, "labels.")
			switch {
			case path == "labels":
				info.Labels = map[string]string{}
				for key, value := range wanted.Labels {
					setLabel(info, key, value)
				}
			case one:
				setLabel(info, label, wanted.Labels[label])
			default:
				return fmt.Errorf("field %q of snapshot %q cannot be updated, only labels can: %w", path, info.Name, errdefs.ErrInvalidArgument)
			}
		}
		return nil
	}
}

func setLabel(info *snapshots.Info, key, value string) {
	if value == "" {
		delete(info.Labels, key)
		return
	}
	if info.Labels == nil {
		info.Labels = map[string]string{}
	}
	info.Labels[key] = value
}

// fields are the fields that the filters of Walk can use.
func fields(info snapshots.Info) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		switch path[0] {
		case "kind":
			return strings.ToLower(info.Kind.String()), true
		case "name":
			return info.Name, true
		case "parent":
			return info.Parent, true
		case "labels":
			value, ok := info.Labels[strings.Join(path[1:], ".")]
			return value, ok
		}
		return "", false
	})
}
