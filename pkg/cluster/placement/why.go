package placement

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
)

const (
	// poolParameter is the parameter of a StorageClass that names a pool.
	poolParameter = "pool"
	// defaultPool is the pool of a class that names none, on a node with several pools.
	defaultPool = "default"
)

// isUnconstrained reports whether a claim has no source and its class names no pool.
func isUnconstrained(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) bool {
	_, ok := client.SourceOf(claim)
	return !ok && class != nil && class.Parameters[poolParameter] == ""
}

// takeUnconstrained reports whether a node with these pools can take unconstrained claims.
func takeUnconstrained(pools []string) bool {
	return len(pools) == 1 || slices.Contains(pools, defaultPool)
}

// whyNoPool returns the reason and the message of an Event if no node has a pool for a claim; "" if
// one has.
func whyNoPool(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, pools []v1alpha1.Pool) (reason, message string) {
	byNode, have := map[string][]string{}, []string{}
	for _, pool := range pools {
		byNode[pool.Spec.NodeName] = append(byNode[pool.Spec.NodeName], pool.Spec.Pool)
		have = append(have, pool.Spec.Pool)
	}
	slices.Sort(have)
	have = slices.Compact(have)
	switch unconstrained := isUnconstrained(claim, class); {
	case class == nil:
	case unconstrained && len(pools) == 0:
		return "NoPool", "No node has a pool: mount a btrfs filesystem at /var/lib/btrfs-csi/pools/default of a node (of its stateDir, if that is another), or set loopPoolSize of the chart; " +
			"`btrfs-csi pools` in the driver of a node shows why one is not used"
	case unconstrained:
		if !slices.ContainsFunc(slices.Collect(maps.Values(byNode)), takeUnconstrained) {
			return "NoDefaultPool", fmt.Sprintf("StorageClass %q names no pool, and each node that has pools has several and none called %q; there are %q: use a class whose parameter %q names one",
				class.Name, defaultPool, have, poolParameter)
		}
	case class.Parameters[poolParameter] != "" && !slices.Contains(have, class.Parameters[poolParameter]):
		return "UnknownPool", fmt.Sprintf("StorageClass %q names pool %q, which no node has; there are %q: mount a btrfs filesystem at pools/%s of a node, or use another class",
			class.Name, class.Parameters[poolParameter], have, class.Parameters[poolParameter])
	}
	return "", ""
}
