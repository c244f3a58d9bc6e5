package client

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestSourceOf(t *testing.T) {
	group, other := "snapshot.storage.k8s.io", "example.com"
	for _, c := range []struct {
		name string
		ref  *corev1.TypedLocalObjectReference
		want Source
	}{
		{name: "nothing"},
		{name: "a snapshot", ref: &corev1.TypedLocalObjectReference{APIGroup: &group, Kind: "VolumeSnapshot", Name: "s"}, want: Source{KindSnapshot, "s"}},
		{name: "a claim", ref: &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "c"}, want: Source{KindClaim, "c"}},
		{name: "of a populator", ref: &corev1.TypedLocalObjectReference{APIGroup: &other, Kind: "VolumeSnapshot", Name: "s"}},
	} {
		claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "db"}, Spec: corev1.PersistentVolumeClaimSpec{DataSource: c.ref}}
		got, ok := SourceOf(claim)
		if got != c.want || ok != (c.want != Source{}) {
			t.Errorf("%s: got %+v, %v", c.name, got, ok)
		}
	}
}
