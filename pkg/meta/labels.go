package meta

import "strings"

// Labels are the keys of Record.Labels. The CSI sidecars send them as parameters, so that
// people can see for what a volume or snapshot was made.
var Labels = []string{
	pvcLabel + "/name", pvcLabel + "/namespace", "pv/name",
	snapshotLabel + "/name", snapshotLabel + "/namespace", "volumesnapshotcontent/name",
}

const (
	pvcLabel      = "pvc"
	snapshotLabel = "volumesnapshot"
)

// RequestedBy returns the "namespace/name" of the PersistentVolumeClaim of a volume or of the
// VolumeSnapshot of a snapshot; "" if the sidecars did not send it. The namespace may be absent.
func (r Record) RequestedBy() string {
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
