module github.com/btrfs-csi/btrfs-csi/test/kernels

go 1.26.0

require (
	github.com/btrfs-csi/btrfs-csi v0.0.0
	github.com/btrfs-csi/btrfs-csi/build/image v0.0.0
	github.com/container-storage-interface/spec v1.13.0
	golang.org/x/sys v0.49.0
)

require (
	github.com/containerd/btrfs/v2 v2.0.0 // indirect
	github.com/go-logr/logr v1.4.4 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/moby/sys/mountinfo v0.7.2 // indirect
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/text v0.42.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260825221802-da73d73af1c5 // indirect
	google.golang.org/grpc v1.85.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
	k8s.io/klog/v2 v2.140.0 // indirect
)

replace (
	github.com/btrfs-csi/btrfs-csi => ../..
	github.com/btrfs-csi/btrfs-csi/build/image => ../../build/image
)
