package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Subvolume is one volume or snapshot, as the node that has it publishes it. Deleting it
// deletes nothing: the node writes it again. Its lineage is in its annotations.
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

// SubvolumeSpec says what it is and where, which its node writes, and what it
// shall become.
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
	// Size is what the volume shall have at least. A larger one than that of
	// the status is an expansion, which the node does at once. It is never shrunk.
	// +optional
	Size *resource.Quantity `json:"size,omitempty"`
}

// SubvolumeStatus is what the node finds.
type SubvolumeStatus struct {
	// State is Ready, or Lost where the record is there and the data is not.
	// +optional
	State string `json:"state,omitempty"`
	// Size is the limit of a volume, and the least size of a copy of a snapshot.
	// +optional
	Size *resource.Quantity `json:"size,omitempty"`
	// Used is what it holds, shared with others or not. It is brought up to date
	// every few minutes, and left out where the pool does not count.
	// +optional
	Used *resource.Quantity `json:"used,omitempty"`
	// Created is when it was made.
	// +optional
	Created *metav1.Time `json:"created,omitempty"`
	// Expansion is what came of the last size in the spec that could not be had.
	// +optional
	Expansion *Refusal `json:"expansion,omitempty"`
}

// Refusal says why an expansion was refused.
type Refusal struct {
	// Size that was wanted.
	Size resource.Quantity `json:"size"`
	// Request is the annotation btrfs-csi.github.io/expand-request that came
	// with it, which distinguishes one attempt from the next.
	// +optional
	Request string `json:"request,omitempty"`
	// Code is that of grpc.
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

// PoolSpec says who owns a pool.
type PoolSpec struct {
	// NodeName is the node that owns the pool, and alone serves it; empty for none.
	NodeName string `json:"nodeName"`
	// Pool is the name of the pool on that node.
	Pool string `json:"pool"`
}

// PoolStatus is what the node finds.
type PoolStatus struct {
	// State is Away, Silent, Unusable, ReadOnly, DeviceMissing, BackingFull, QuotaInconsistent,
	// DeviceErrors, or Ready: the first of them that is true.
	// +optional
	State string `json:"state,omitempty"`
	// Message says more of it.
	// +optional
	Message string `json:"message,omitempty"`
	// Size of the filesystem.
	// +optional
	Size *resource.Quantity `json:"size,omitempty"`
	// Available is what can still be written.
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
