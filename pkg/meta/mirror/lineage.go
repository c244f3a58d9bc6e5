package mirror

import (
	"strconv"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// lineage returns the annotations of an entry; an empty value is for a key that
// shall not be there.
func lineage(e meta.Entry) map[string]string {
	return map[string]string{
		v1alpha1.AnnotationParent:         e.Source.ID,
		v1alpha1.AnnotationUUID:           e.UUID,
		v1alpha1.AnnotationParentUUID:     e.ParentUUID,
		v1alpha1.AnnotationReceivedUUID:   e.ReceivedUUID,
		v1alpha1.AnnotationSubvolumeID:    number(e.SubvolumeID),
		v1alpha1.AnnotationCreatedTransid: number(e.CreatedTransid),
	}
}

// number returns n, or nothing for the zero that stands for nothing.
func number(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}

// lineageTouched reports whether somebody else's hand has been at the lineage of
// an object, or it was never written.
func lineageTouched(before, now map[string]string) bool {
	for key := range lineage(meta.Entry{}) {
		if before[key] != now[key] {
			return true
		}
	}
	return false
}

// claimOf returns what an entry was made for; empty where the sidecars did not say.
func claimOf(e meta.Entry) string {
	kind := "pvc"
	if e.Kind == meta.Committed {
		kind = "volumesnapshot"
	}
	namespace, name := e.Labels[kind+"/namespace"], e.Labels[kind+"/name"]
	if name == "" {
		return ""
	}
	return namespace + "/" + name
}
