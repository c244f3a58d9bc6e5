package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// lostTable maps errors of Stat to the health of a volume. Other errors fail the request.
var lostTable = []struct {
	err    error
	status csi.VolumeHealthErrorType
	reason string
}{
	{snapshot.ErrOutside, csi.VolumeHealthErrorType_INACCESSIBLE, "SubvolumeOutsidePool"},
	{snapshot.ErrLost, csi.VolumeHealthErrorType_DATA_LOSS, "SubvolumeLost"},
	{pool.ErrSilent, csi.VolumeHealthErrorType_INACCESSIBLE, pool.Silent.Reason()}, // ErrSilent is an ErrAway: keep it before that
	{pool.ErrAway, csi.VolumeHealthErrorType_INACCESSIBLE, "PoolAway"},
	{snapshot.ErrUnreadable, csi.VolumeHealthErrorType_INACCESSIBLE, "RecordUnreadable"},
	{snapshot.ErrAmbiguous, csi.VolumeHealthErrorType_INACCESSIBLE, "FoundInTwoPools"},
}

// ControllerGetVolumeHealth and NodeGetVolumeHealth return the same, since one process
// serves both. ControllerListVolumeHealth is not served: it is for lost volumes, and
// listings leave these out.
func (s *controller) ControllerGetVolumeHealth(ctx context.Context, request *csi.ControllerGetVolumeHealthRequest) (*csi.ControllerGetVolumeHealthResponse, error) {
	health, err := s.volumeHealth(ctx, request.GetVolumeId())
	return &csi.ControllerGetVolumeHealthResponse{VolumeHealth: health}, err
}

func (s *node) NodeGetVolumeHealth(ctx context.Context, request *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	health, err := s.volumeHealth(ctx, request.GetVolumeId())
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: health}, err
}

// mostNested is the largest number of nested subvolumes in a message.
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
		add(csi.VolumeHealthErrorType_DEGRADED, "NestedSubvolumes", fmt.Sprintf("it contains %d nested subvolumes, and cannot be copied with them: %q",
			len(nested), nested[:min(len(nested), mostNested)]))
	}
	conditions, err := s.engine.VolumeConditions(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, c := range conditions {
		add(csi.VolumeHealthErrorType_DEGRADED, c.Reason, c.Message)
	}
	for _, p := range s.engine.Pools(ctx) {
		if p.ID != entry.PoolID {
			continue
		}
		for _, c := range p.Conditions() {
			add(csi.VolumeHealthErrorType_DEGRADED, c.Problem.Reason(), named(p.Name, c.Message))
		}
	}
	return health, nil
}

// NodeGetStorageHealth returns the conditions of all pools. CSI allows each reason only
// once, so one entry contains all pools with the same problem.
func (s *node) NodeGetStorageHealth(ctx context.Context, _ *csi.NodeGetStorageHealthRequest) (*csi.NodeGetStorageHealthResponse, error) {
	response := &csi.NodeGetStorageHealthResponse{}
	for _, p := range s.engine.Pools(ctx) {
		for _, c := range p.Conditions() {
			addBackend(response, c.Problem, named(p.Name, c.Message))
		}
	}
	return response, nil
}

func addBackend(response *csi.NodeGetStorageHealthResponse, problem pool.Problem, message string) {
	status := csi.StorageHealthErrorType_STORAGE_DEGRADED
	if problem == pool.Unusable || problem == pool.Silent {
		status = csi.StorageHealthErrorType_STORAGE_UNREACHABLE
	}
	at := slices.IndexFunc(response.BackendHealth, func(b *csi.NodeGetStorageHealthResponse_StorageBackendHealth) bool {
		return b.Reason == problem.Reason()
	})
	if at >= 0 {
		response.BackendHealth[at].Message += "; " + message
		return
	}
	response.BackendHealth = append(response.BackendHealth, &csi.NodeGetStorageHealthResponse_StorageBackendHealth{
		Status: status, Reason: problem.Reason(), Message: message,
	})
}

// named prefixes a message with its pool, unless it already has that prefix.
func named(name, message string) string {
	prefix := fmt.Sprintf("pool %q: ", name)
	return prefix + strings.TrimPrefix(message, prefix)
}
