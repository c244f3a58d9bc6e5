package mirror

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// What runs against an API server is tested with a real one, in test/e2e. Here is
// what only decides; where it asks one before, a fake (api_test.go).

func TestObjectName(t *testing.T) {
	hash := strings.Repeat("0123456789abcdef", 4)
	names := map[string]meta.Ref{}
	for _, c := range []struct {
		ref   meta.Ref
		plain bool
	}{
		{meta.Volume("pvc-83ff0d38-ef35-4132-bea1-7bc6e85125c8"), true},
		{meta.Snapshot("snapshot-83ff0d38-ef35-4132-bea1-7bc6e85125c8"), true},
		{meta.Volume("sha256-" + hash), true},
		{meta.Snapshot("pvc-1"), false},
		{meta.Volume("pvc-1"), true},
		{meta.Volume("snapshot-1"), false},
		{meta.Snapshot("snapshot-1"), true},
		{meta.Volume("Upper_Case"), false},
		{meta.Snapshot("Upper_Case"), false},
		{meta.Volume("subvolume-" + hash), false},
		{meta.Volume("ends-with-"), false},
		{meta.Volume(strings.Repeat("a", 128)), true},
	} {
		name := SubvolumeName(c.ref)
		if (name == c.ref.ID) != c.plain {
			t.Errorf("%s: got the name %q, as it is: want %v", c.ref, name, c.plain)
		}
		if wrong := validation.IsDNS1123Subdomain(name); len(wrong) > 0 {
			t.Errorf("%s: %q: %v", c.ref, name, wrong)
		}
		if other, taken := names[name]; taken {
			t.Errorf("%s and %s have one name %q", c.ref, other, name)
		}
		names[name] = c.ref
	}
}

func TestMetadataPatch(t *testing.T) {
	for _, c := range []struct {
		name         string
		have, want   map[string]string
		label, wants map[string]string
		patch        string
	}{
		{name: "nothing new", have: map[string]string{"a": "1", "other": "x"}, want: map[string]string{"a": "1", "b": ""}},
		{name: "new, other, gone", have: map[string]string{"b": "1", "c": "2", "other": "x"}, want: map[string]string{"a": "1", "b": "2", "c": ""},
			patch: `{"metadata":{"annotations":{"a":"1","b":"2","c":null}}}`},
		{name: "a label", label: map[string]string{"l": "node-1"}, wants: map[string]string{"l": "node-2"},
			patch: `{"metadata":{"labels":{"l":"node-2"}}}`},
	} {
		if got := string(MetadataPatch(c.have, c.want, c.label, c.wants)); got != c.patch {
			t.Errorf("%s: want %s, got %s", c.name, c.patch, got)
		}
	}
}

func TestCoarse(t *testing.T) {
	for _, c := range []struct{ n, whole, want int64 }{
		{0, 0, 0}, {5, 0, 5}, {1000, 128, 1000}, {1000, 256, 1000}, {1001, 256, 1000}, {10146860199, 10 << 30, 10133438464},
	} {
		if got := coarse(c.n, c.whole); got != c.want {
			t.Errorf("coarse(%d, %d): want %d, got %d", c.n, c.whole, c.want, got)
		}
	}
}

func TestDescribe(t *testing.T) {
	w := writer{cluster: NewCluster(nowhere(t), Identity{NodeName: "node-1"})}
	entry := meta.Entry{
		Record: meta.Record{
			ID: "pvc-2", Kind: meta.Active, Size: 5 << 20, Created: time.Unix(1, 0), Source: meta.Snapshot("snapshot-1"),
			Labels: map[string]string{"pvc/name": "data", "pvc/namespace": "db"},
		},
		Lineage: meta.Lineage{SubvolumeID: 257, UUID: "u", ParentUUID: "p", CreatedTransid: 9}, Pool: "fast", PoolID: "id",
	}
	s := &v1alpha1.Subvolume{}
	s.Annotations = map[string]string{"other": "stays", v1alpha1.AnnotationReceivedUUID: "of somebody's hand"}
	w.describe(s, entry)
	want := v1alpha1.SubvolumeSpec{ID: "pvc-2", Kind: "Volume", NodeName: "node-1", Pool: "fast", PoolID: "id", Size: quantity(5 << 20)}
	if !equality.Semantic.DeepEqual(s.Spec, want) {
		t.Errorf("want %+v, got %+v", want, s.Spec)
	}
	for key, value := range map[string]string{
		v1alpha1.AnnotationParent: "snapshot-1", v1alpha1.AnnotationUUID: "u", v1alpha1.AnnotationParentUUID: "p", v1alpha1.AnnotationSubvolumeID: "257", v1alpha1.AnnotationCreatedTransid: "9", v1alpha1.AnnotationClaim: "db/data", "other": "stays",
	} {
		if s.Annotations[key] != value {
			t.Errorf("annotation %s: want %q, got %q", key, value, s.Annotations[key])
		}
	}
	if _, there := s.Annotations[v1alpha1.AnnotationReceivedUUID]; there {
		t.Error("an annotation without a value is there")
	}
	s.Spec.Size = quantity(9 << 20) // somebody asks for more: it is not ours to take back
	w.describe(s, entry)
	if s.Spec.Size.Value() != 9<<20 {
		t.Errorf("the wish for a larger size is gone: %v", s.Spec.Size)
	}
}

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

// TestDebounce: what is written waits for changes to end, but not for ever.
func TestDebounce(t *testing.T) {
	u, began := debounce{until: map[meta.Ref]time.Time{}}, time.Now()
	for _, c := range []struct {
		name string
		at   time.Duration
		calm bool // else something changes just then
		ref  string
		want time.Duration
	}{
		{name: "nothing changes", calm: true, ref: "pvc-1"},
		{name: "a change", at: 1 * time.Second, ref: "pvc-1", want: calm},
		{name: "and calm", at: 1*time.Second + calm, calm: true, ref: "pvc-1"},
		{name: "one of many changes", at: 10 * time.Second, ref: "pvc-1", want: calm},
		{name: "another of them, later", at: 14 * time.Second, ref: "pvc-2", want: calm},
		{name: "its time is near", at: 15*time.Second - calm/2, ref: "pvc-1", want: calm / 2},
		{name: "and has come", at: 15 * time.Second, ref: "pvc-1"},
		{name: "that of the other has not", at: 15 * time.Second, ref: "pvc-2", want: calm},
		{name: "it has changed again", at: 16 * time.Second, ref: "pvc-1", want: calm},
		{name: "that of the other has come too", at: 19 * time.Second, ref: "pvc-2"},
	} {
		now := began.Add(c.at)
		if !c.calm {
			u.changed(now)
		}
		if got := max(u.delay(meta.Volume(c.ref), now), 0); got != c.want {
			t.Errorf("%s: want %s put off by %v, got %v", c.name, c.ref, c.want, got)
		}
	}
}

// TestRest: in unrest that does not end everything is written some time after it
// changed, once for all its changes; when it ends, at once.
func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLabOf(t, "node-1", nil, nowhere(t), newFakeNode(), Options{})
		began, looked := time.Now(), map[string][]time.Duration{}
		l.node.looked = func(ref meta.Ref) { looked[ref.ID] = append(looked[ref.ID], time.Since(began)) }
		for range workers {
			go work(t.Context(), l.subvolumes.queue, l.subvolumes.reconcile)
		}
		const each = calm / 5
		for i := range int(3 * maxDelay / each) {
			l.Changed(meta.Volume(fmt.Sprintf("pvc-%d", i/2))) // each twice
			time.Sleep(each)
		}
		end := time.Since(began) - each
		time.Sleep(2 * maxDelay)
		l.node.mu.Lock()
		defer l.node.mu.Unlock()
		for i := range int(3 * maxDelay / each / 2) {
			name, changed := fmt.Sprintf("pvc-%d", i), 2*time.Duration(i)*each
			want := min(changed+calm+maxDelay, end+calm)
			if got := looked[name]; len(got) != 1 || got[0] < want || got[0] > want+calm {
				t.Errorf("%s, changed after %v: want it looked at after %v, got %v", name, changed, want, got)
			}
		}
	})
}
