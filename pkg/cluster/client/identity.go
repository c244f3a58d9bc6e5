package client

import (
	"strings"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
)

// Identity says which objects of the cluster belong to this driver, and to this node.
type Identity struct {
	// NodeName is the name of this node in the cluster.
	NodeName string
	// Driver is the name of the CSI driver.
	Driver string
	// TopologyPrefix and a pool's ID form a topology key. TopologyValue is its value.
	TopologyPrefix, TopologyValue string
}

// VolumeHandle returns the handle of a PersistentVolume, "" if it is of another driver.
func (i Identity) VolumeHandle(v *corev1.PersistentVolume) string {
	if csi := v.Spec.CSI; csi != nil && csi.Driver == i.Driver {
		return csi.VolumeHandle
	}
	return ""
}

// PoolID returns the ID of the pool of a PersistentVolume; "" if it names none or is of another
// driver.
func (i Identity) PoolID(v *corev1.PersistentVolume) string {
	if csi := v.Spec.CSI; csi == nil || csi.Driver != i.Driver || v.Spec.NodeAffinity == nil || v.Spec.NodeAffinity.Required == nil {
		return ""
	}
	for _, term := range v.Spec.NodeAffinity.Required.NodeSelectorTerms {
		for _, e := range term.MatchExpressions {
			if id, ok := strings.CutPrefix(e.Key, i.TopologyPrefix); ok {
				return id
			}
		}
	}
	return ""
}

// SnapshotHandle returns the handle of a VolumeSnapshotContent; "" if it has none yet or is of
// another driver.
func (i Identity) SnapshotHandle(content *snapshotv1.VolumeSnapshotContent) string {
	if content.Spec.Driver != i.Driver {
		return ""
	}
	if handle := content.Spec.Source.SnapshotHandle; handle != nil {
		return *handle
	}
	if content.Status != nil && content.Status.SnapshotHandle != nil {
		return *content.Status.SnapshotHandle
	}
	return ""
}

// GroupHandle returns the handle of a VolumeGroupSnapshotContent; "" if it is of another driver or
// not bound. A dynamic one has it before its group is taken, so that it can be deleted at any time.
func (i Identity) GroupHandle(content *groupv1.VolumeGroupSnapshotContent) string {
	switch handles := content.Spec.Source.GroupSnapshotHandles; {
	case content.Spec.Driver != i.Driver:
		return ""
	case handles != nil:
		return handles.VolumeGroupSnapshotHandle
	case content.Spec.VolumeGroupSnapshotRef.UID == "":
		return ""
	}
	return groupPrefix + string(content.Spec.VolumeGroupSnapshotRef.UID)
}
