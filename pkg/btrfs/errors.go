package btrfs

import "errors"

var (
	// ErrNotSubvolume means that a path is a directory on btrfs, but not the root of a
	// subvolume.
	ErrNotSubvolume = errors.New("not the root of a subvolume")

	// ErrQuotaMode means that EnableQuota found quota enabled in another mode. The kernel
	// itself would report success.
	ErrQuotaMode = errors.New("quota is enabled in another mode")

	// ErrInUse means that the kernel refuses to remove a subvolume.
	ErrInUse = errors.New("in use by the kernel, as the default subvolume (btrfs subvolume set-default), for an active swap file in it (swapoff), or while it is sent")

	// ErrUnsupported means that the running kernel lacks a feature.
	ErrUnsupported = errors.New("not supported by this kernel")
)
