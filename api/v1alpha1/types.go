package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Subvolume is one volume or snapshot, as its node publishes it. If you delete a Subvolume, no volume
// is deleted, and the node writes it again. Annotations have the lineage.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=subvol,categories=btrfs-csi
// +kubebuilder:subresource:status
// +kubebuilder:selectablefield:JSONPath=`.spec.nodeName`
// +kubebuilder:selectablefield:JSONPath=`.spec.poolID`
// +kubebuilder:printcolumn:name="Pool",type=string,JSONPath=`.spec.pool`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Kind",type=string,JSONPath=`.spec.kind`
// +kubebuilder:printcolumn:name="Parent",type=string,JSONPath=`.metadata.annotations.btrfs-csi\.github\.io/parent`
// +kubebuilder:printcolumn:name="Size",type=string,JSONPath=`.status.size`
// +kubebuilder:printcolumn:name="Used",type=string,JSONPath=`.status.used`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="PVC/VolumeSnapshot",type=string,priority=1,JSONPath=`.metadata.annotations.btrfs-csi\.github\.io/requested-by`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.status.created`
type Subvolume struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   SubvolumeSpec   `json:"spec"`
	Status SubvolumeStatus `json:"status,omitempty"`
}

// SubvolumeSpec identifies the volume or snapshot. Its node writes all fields. Others may only ask for
// a larger size.
type SubvolumeSpec struct {
	// ID is the volume or snapshot handle.
	ID string `json:"id"`
	// Kind is Volume, Snapshot or ReadOnlyVolume.
	// +kubebuilder:validation:Enum=Volume;Snapshot;ReadOnlyVolume
	Kind string `json:"kind"`
	// NodeName is the node that has the pool.
	NodeName string `json:"nodeName"`
	// Pool is the name of the pool on that node.
	Pool string `json:"pool"`
	// PoolID is the ID of the pool, which goes with the disk.
	PoolID string `json:"poolID"`
	// Size is the least size that the volume should have. If it is larger than the size in the status,
	// the node expands the volume. A volume is never shrunk.
	// +optional
	Size *resource.Quantity `json:"size,omitempty"`
}

// SubvolumeStatus is the state of the volume or snapshot on its node.
type SubvolumeStatus struct {
	// State is Ready, or Lost if the record exists and the data does not.
	// +optional
	State string `json:"state,omitempty"`
	// Size is the size of a volume, or the least size of a restore of a snapshot.
	// +optional
	Size *resource.Quantity `json:"size,omitempty"`
	// Used is the amount of data in it, shared with others or not. The node updates it every few
	// minutes. It is absent without quota.
	// +optional
	Used *resource.Quantity `json:"used,omitempty"`
	// Created is the time of its creation.
	// +optional
	Created *metav1.Time `json:"created,omitempty"`
	// Expansion says why the last request for a larger size was refused.
	// +optional
	Expansion *Refusal `json:"expansion,omitempty"`
}

// Refusal says why an expansion was refused.
type Refusal struct {
	// Size is the size that was requested.
	Size resource.Quantity `json:"size"`
	// Request is the annotation btrfs-csi.github.io/expand-request of the request. It distinguishes
	// one attempt from the next.
	// +optional
	Request string `json:"request,omitempty"`
	// Code is the name of a gRPC code.
	Code string `json:"code"`
	// Message says what to do.
	Message string `json:"message"`
}

// SubvolumeList is a list of Subvolumes.
//
// +kubebuilder:object:root=true
type SubvolumeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Subvolume `json:"items"`
}

// Pool is one btrfs filesystem with volumes, and the node that owns it. It is named after
// the pool's ID.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,categories=btrfs-csi
// +kubebuilder:subresource:status
// +kubebuilder:selectablefield:JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Pool",type=string,JSONPath=`.spec.pool`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Size",type=string,JSONPath=`.status.size`
// +kubebuilder:printcolumn:name="Available",type=string,JSONPath=`.status.available`
// +kubebuilder:printcolumn:name="Quota",type=string,JSONPath=`.status.quota`
// +kubebuilder:printcolumn:name="Subvolumes",type=integer,JSONPath=`.status.subvolumes`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Pool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   PoolSpec   `json:"spec"`
	Status PoolStatus `json:"status,omitempty"`
}

// PoolSpec names the owner of a pool.
type PoolSpec struct {
	// NodeName is the node that owns the pool. Only that node serves it. Empty for none.
	NodeName string `json:"nodeName"`
	// Pool is the name of the pool on that node.
	Pool string `json:"pool"`
}

// PoolStatus is the state of the pool on its node.
type PoolStatus struct {
	// State is Away, Silent, Unusable, ReadOnly, DeviceMissing, BackingFull, MetadataFull,
	// QuotaInconsistent, DeviceErrors, or Ready: the first of these that applies.
	// +optional
	State string `json:"state,omitempty"`
	// Message explains the state.
	// +optional
	Message string `json:"message,omitempty"`
	// Size of the filesystem.
	// +optional
	Size *resource.Quantity `json:"size,omitempty"`
	// Available is how much can still be written.
	// +optional
	Available *resource.Quantity `json:"available,omitempty"`
	// Quota is the mode: full, simple or none.
	// +optional
	Quota string `json:"quota,omitempty"`
	// Subvolumes is the number of volumes and snapshots.
	// +optional
	Subvolumes int64 `json:"subvolumes"`
}

// PoolList is a list of Pools.
//
// +kubebuilder:object:root=true
type PoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Pool `json:"items"`
}
