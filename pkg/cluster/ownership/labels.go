package ownership

import (
	"context"
	"fmt"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/client"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
)

// Labels writes the topology labels of this Node, one for each pool. The kubelet sets them when the
// driver registers, but never removes one. Then the scheduler would place pods here whose volumes
// have moved to another node.
type Labels struct {
	cluster *client.Cluster
	pools   func(ctx context.Context) (ids []string)
}

// NewLabels returns the controller of the labels for pools.
func NewLabels(cluster *client.Cluster, pools func(ctx context.Context) (ids []string)) *Labels {
	return &Labels{cluster, pools}
}

// Reconcile sets the labels for the pools of this node. It returns an error if it should be called
// again soon.
func (l *Labels) Reconcile(ctx context.Context) error {
	node, err := l.cluster.API.Nodes().Get(ctx, l.cluster.NodeName, metav1.GetOptions{})
	if err != nil {
		klog.FromContext(ctx).V(2).Info("Labels of the node cannot be read", "reason", err)
		return nil
	}
	want := map[string]string{}
	for key := range node.Labels {
		if strings.HasPrefix(key, l.cluster.TopologyPrefix) {
			want[key] = ""
		}
	}
	for _, id := range l.pools(ctx) {
		want[l.cluster.TopologyPrefix+id] = l.cluster.TopologyValue
	}
	patch := labelsPatch(node.ResourceVersion, node.Labels, want)
	if patch == nil {
		return nil
	}
	if _, err := l.cluster.API.Nodes().Patch(ctx, node.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		klog.FromContext(ctx).V(2).Info("Topology labels of the node not set yet", "labels", want, "reason", err)
		return err
	}
	klog.FromContext(ctx).Info("Topology labels of the node set", "labels", want)
	return nil
}

// labelsPatch is MetadataPatch for labels. The patch fails if the object has changed meanwhile.
func labelsPatch(resourceVersion string, have, want map[string]string) []byte {
	patch := client.MetadataPatch(nil, nil, have, want)
	if patch == nil {
		return nil
	}
	return []byte(strings.Replace(string(patch), `{"metadata":{`, fmt.Sprintf(`{"metadata":{"resourceVersion":%q,`, resourceVersion), 1))
}
