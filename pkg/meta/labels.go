package meta

import "strings"

// Labels are the keys of Record.Labels. The CSI sidecars send them as parameters, so that
// people can see for what a volume or snapshot was made.
var Labels = []string{
	pvcLabel + "/name", pvcLabel + "/namespace", "pv/name",
	snapshotLabel + "/name", snapshotLabel + "/namespace", "volumesnapshotcontent/name",
	groupLabel + "/name", groupLabel + "/namespace", "volumegroupsnapshotcontent/name",
}

const (
	pvcLabel      = "pvc"
	snapshotLabel = "volumesnapshot"
	groupLabel    = "volumegroupsnapshot"
)

// RequestedBy returns the "namespace/name" of the PersistentVolumeClaim of a volume, of the
// VolumeSnapshot of a snapshot, or of the VolumeGroupSnapshot of a member of a group; "" if the sidecars did not send it. The namespace may be absent.
func (r Record) RequestedBy() string {
	kind := pvcLabel
	if r.Kind == Committed {
		kind = snapshotLabel
	}
	if r.Group != (Group{}) {
		kind = groupLabel
	}
	name := r.Labels[kind+"/name"]
	if name == "" {
		return ""
	}
	return strings.TrimPrefix(r.Labels[kind+"/namespace"]+"/"+name, "/")
}
