package meta

import "strings"

// Labels are the keys of Record.Labels. The CSI sidecars send them as parameters, so that
// people can see whose a volume or snapshot is.
var Labels = []string{
	pvcLabel + "/name", pvcLabel + "/namespace", "pv/name",
	snapshotLabel + "/name", snapshotLabel + "/namespace", "volumesnapshotcontent/name",
}

const (
	pvcLabel      = "pvc"
	snapshotLabel = "volumesnapshot"
)

// Claim returns the namespace and name of the PersistentVolumeClaim, or of the VolumeSnapshot
// of a snapshot, as "namespace/name"; "" if the sidecars did not send it. The namespace may be
// absent.
func (r Record) Claim() string {
	kind := pvcLabel
	if r.Kind == Committed {
		kind = snapshotLabel
	}
	name := r.Labels[kind+"/name"]
	if name == "" {
		return ""
	}
	return strings.TrimPrefix(r.Labels[kind+"/namespace"]+"/"+name, "/")
}
