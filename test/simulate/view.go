package simulate

import (
	"encoding/json"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
)

// snapshotsDir is where the VolumeSnapshots of the one namespace are.
const snapshotsDir = "/apis/snapshot.storage.k8s.io/v1/namespaces/db/volumesnapshots"

// view is the cluster at one moment, by name. Nobody changes what is in it.
type view struct {
	version    int
	volumes    kindView[*corev1.PersistentVolume]
	claims     kindView[*corev1.PersistentVolumeClaim]
	nodes      kindView[*corev1.Node]
	contents   kindView[*snapshotv1.VolumeSnapshotContent]
	snapshots  kindView[*snapshotv1.VolumeSnapshot]
	subvolumes kindView[*v1alpha1.Subvolume]
	pools      kindView[*v1alpha1.Pool]
}

// kindView is the objects of one kind.
type kindView[O any] struct {
	list   []O // by name
	byName map[string]O
}

func (k kindView[O]) get(name string) (O, bool) { o, ok := k.byName[name]; return o, ok }

// views reads the API server, and remembers what it was.
type views struct {
	api     *clustertest.API
	decoded map[string]any // by version of an object
	recent  []*view        // the newest last
}

// remembered is how many views a process may lag behind.
const remembered = 12

// now returns the cluster as it is.
func (v *views) now() *view {
	version := v.api.Version()
	if n := len(v.recent); n > 0 && v.recent[n-1].version == version {
		return v.recent[n-1]
	}
	if len(v.decoded) > 5000 {
		v.decoded = map[string]any{}
	}
	now := &view{
		version:    version,
		volumes:    read[corev1.PersistentVolume](v, clustertest.PersistentVolumes),
		claims:     read[corev1.PersistentVolumeClaim](v, clustertest.Claims),
		nodes:      read[corev1.Node](v, clustertest.Nodes),
		contents:   read[snapshotv1.VolumeSnapshotContent](v, clustertest.Contents),
		snapshots:  read[snapshotv1.VolumeSnapshot](v, snapshotsDir),
		subvolumes: read[v1alpha1.Subvolume](v, clustertest.Subvolumes),
		pools:      read[v1alpha1.Pool](v, clustertest.Pools),
	}
	if v.recent = append(v.recent, now); len(v.recent) > remembered {
		v.recent = v.recent[1:]
	}
	return now
}

func read[T any](v *views, dir string) kindView[*T] {
	k := kindView[*T]{byName: map[string]*T{}}
	for _, raw := range v.api.Under(dir) {
		metadata := clustertest.Child(raw, "metadata")
		name := metadata["name"].(string)
		key := dir + "/" + name + "@" + metadata["resourceVersion"].(string)
		o, ok := v.decoded[key].(*T)
		if !ok {
			o = new(T)
			data, err := json.Marshal(raw)
			if err == nil {
				err = json.Unmarshal(data, o)
			}
			if err != nil {
				panic(err) // what was written as this type
			}
			v.decoded[key] = o
		}
		k.list, k.byName[name] = append(k.list, o), o
	}
	return k
}
