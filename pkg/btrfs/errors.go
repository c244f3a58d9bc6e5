package btrfs

import "errors"

var (
	// ErrNotSubvolume is returned when a path is a directory on btrfs but not the
	// root of a subvolume.
	ErrNotSubvolume = errors.New("not the root of a subvolume")

	// ErrQuotaMode is returned by EnableQuota when the filesystem has quota in
	// another mode. The kernel would answer such a request with success.
	ErrQuotaMode = errors.New("quota is enabled in another mode")

	// ErrInUse is returned when the kernel does not let go of a subvolume.
	ErrInUse = errors.New("held by the kernel, as the default subvolume (btrfs subvolume set-default), for an active swap file in it (swapoff), or while it is sent")

	// ErrUnsupported is returned when the running kernel lacks a feature.
	ErrUnsupported = errors.New("not supported by this kernel")
)
