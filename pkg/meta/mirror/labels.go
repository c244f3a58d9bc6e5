package mirror

import (
	"context"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
)

// syncLabels brings the topology labels of the Node in line with the pools here.
// The kubelet sets them once, when the driver registers, and takes none back:
// pods would be sent here whose volumes have moved on with their disk.
func (m *Mirror) syncLabels(ctx context.Context) {
	node, err := m.cluster.API.Nodes().Get(ctx, m.cluster.NodeName, metav1.GetOptions{})
	if err != nil {
		klog.FromContext(ctx).V(2).Info("Labels of the node cannot be read", "reason", err)
		return
	}
	want := map[string]string{}
	for key := range node.Labels {
		if strings.HasPrefix(key, m.cluster.TopologyPrefix) {
			want[key] = ""
		}
	}
	for _, report := range m.node.Pools(ctx) {
		if _, denied := m.claims.denied[report.ID]; report.ID != "" && !denied {
			want[m.cluster.TopologyPrefix+report.ID] = m.cluster.TopologyValue
		}
	}
	patch := labelsPatch(node.ResourceVersion, node.Labels, want)
	if patch == nil {
		return
	}
	if _, err := m.cluster.API.Nodes().Patch(ctx, node.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		klog.FromContext(ctx).V(2).Info("Topology labels of the node not brought in line yet", "labels", want, "reason", err)
		m.relabel(secondLook)
		return
	}
	klog.FromContext(ctx).Info("Topology labels of the node brought in line with its pools", "labels", want)
}

// relabel has the labels looked at again.
func (m *Mirror) relabel(after time.Duration) {
	time.AfterFunc(after, func() {
		select {
		case m.labels <- struct{}{}:
		default: // one is on its way
		}
	})
}

// labelsPatch is metadataPatch for the labels of an object that nobody else has
// changed in the meantime.
func labelsPatch(resourceVersion string, have, want map[string]string) []byte {
	patch := metadataPatch(nil, nil, have, want)
	if patch == nil {
		return nil
	}
	return []byte(strings.Replace(string(patch), `{"metadata":{`, fmt.Sprintf(`{"metadata":{"resourceVersion":%q,`, resourceVersion), 1))
}
