package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// lostTable says what it means for a volume that the engine cannot give it.
// Other errors are no state of a volume.
var lostTable = []struct {
	err    error
	status csi.VolumeHealthErrorType
	reason string
}{
	{snapshot.ErrOutside, csi.VolumeHealthErrorType_INACCESSIBLE, "SubvolumeOutsidePool"},
	{snapshot.ErrLost, csi.VolumeHealthErrorType_DATA_LOSS, "SubvolumeLost"},
	{pool.ErrSilent, csi.VolumeHealthErrorType_INACCESSIBLE, silent}, // which is a pool that is away, too
	{pool.ErrAway, csi.VolumeHealthErrorType_INACCESSIBLE, "PoolAway"},
	{snapshot.ErrUnreadable, csi.VolumeHealthErrorType_INACCESSIBLE, "RecordUnreadable"},
	{snapshot.ErrAmbiguous, csi.VolumeHealthErrorType_INACCESSIBLE, "FoundInTwoPools"},
}

// ControllerGetVolumeHealth and NodeGetVolumeHealth return the same: controller
// and node of a volume are one process. ControllerListVolumeHealth is not
// served: listings leave lost volumes out, which is what it would be for.
func (s *controller) ControllerGetVolumeHealth(ctx context.Context, request *csi.ControllerGetVolumeHealthRequest) (*csi.ControllerGetVolumeHealthResponse, error) {
	health, err := s.volumeHealth(ctx, request.GetVolumeId())
	return &csi.ControllerGetVolumeHealthResponse{VolumeHealth: health}, err
}

func (s *node) NodeGetVolumeHealth(ctx context.Context, request *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	health, err := s.volumeHealth(ctx, request.GetVolumeId())
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: health}, err
}

// mostNested is how many nested subvolumes are named.
const mostNested = 10

func (s *Driver) volumeHealth(ctx context.Context, id string) (*csi.VolumeHealth, error) {
	if err := required("volume_id", id); err != nil {
		return nil, err
	}
	health := &csi.VolumeHealth{VolumeId: id}
	add := func(status csi.VolumeHealthErrorType, reason, message string) {
		health.HealthStatuses = append(health.HealthStatuses, &csi.VolumeHealth_VolumeHealthEntry{Status: status, Reason: reason, Message: message})
	}
	entry, err := s.engine.Stat(ctx, meta.Volume(id))
	for _, line := range lostTable {
		if errors.Is(err, line.err) {
			add(line.status, line.reason, err.Error())
			return health, nil
		}
	}
	if err != nil {
		return nil, err
	}
	nested, err := s.engine.Nested(ctx, id)
	if err != nil {
		return nil, err
	}
	if len(nested) > 0 && !entry.Parameters.SkipNested {
		add(csi.VolumeHealthErrorType_DEGRADED, "NestedSubvolumes", fmt.Sprintf("it holds %d subvolumes, and cannot be copied with them: %q",
			len(nested), nested[:min(len(nested), mostNested)]))
	}
	conditions, err := s.engine.Conditions(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, c := range conditions {
		add(csi.VolumeHealthErrorType_DEGRADED, c.Reason, c.Message)
	}
	for _, pool := range s.engine.Pools(ctx) {
		if pool.ID != entry.PoolID {
			continue
		}
		for _, f := range faultsOf(pool) {
			add(csi.VolumeHealthErrorType_DEGRADED, f.reason, f.message)
		}
	}
	return health, nil
}

// NodeGetStorageHealth reports the faults of all pools. CSI allows each reason once, so
// one entry names all pools that have the fault.
func (s *node) NodeGetStorageHealth(ctx context.Context, _ *csi.NodeGetStorageHealthRequest) (*csi.NodeGetStorageHealthResponse, error) {
	response := &csi.NodeGetStorageHealthResponse{}
	for _, pool := range s.engine.Pools(ctx) {
		for _, f := range faultsOf(pool) {
			addBackend(response, f)
		}
	}
	return response, nil
}

func addBackend(response *csi.NodeGetStorageHealthResponse, f fault) {
	status := csi.StorageHealthErrorType_STORAGE_DEGRADED
	if f.reason == unusable || f.reason == silent {
		status = csi.StorageHealthErrorType_STORAGE_UNREACHABLE
	}
	at := slices.IndexFunc(response.BackendHealth, func(b *csi.NodeGetStorageHealthResponse_StorageBackendHealth) bool {
		return b.Reason == f.reason
	})
	if at >= 0 {
		response.BackendHealth[at].Message += "; " + f.message
		return
	}
	response.BackendHealth = append(response.BackendHealth, &csi.NodeGetStorageHealthResponse_StorageBackendHealth{
		Status: status, Reason: f.reason, Message: f.message,
	})
}

// fault is something wrong with a pool.
type fault struct{ reason, message string }

// unusable is the reason of a pool that cannot be used at all.
const unusable = "PoolUnusable"

// silent is the reason of a pool whose disk does not answer.
const silent = "PoolSilent"

// reasons are the problems of a pool in use that have another name as a reason.
var reasons = map[pool.Problem]string{
	pool.Unusable: "PoolUnreadable",
	pool.ReadOnly: "PoolReadOnly",
}

// faultsOf returns what is wrong with a pool, each reason once.
func faultsOf(pool pool.Status) []fault {
	if pool.Silent {
		return []fault{{silent, pool.Error}}
	}
	if pool.ID == "" {
		return []fault{{unusable, fmt.Sprintf("pool %q: %s", pool.Name, pool.Error)}}
	}
	var faults []fault
	for _, f := range pool.Faults() {
		faults = append(faults, fault{cmp.Or(reasons[f.Problem], string(f.Problem)), fmt.Sprintf("pool %q: %s", pool.Name, f.Detail)})
	}
	return faults
}
