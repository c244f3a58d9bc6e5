package mirror

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// TestDebounce: a write waits for the end of changes, at most maxDelay.
func TestDebounce(t *testing.T) {
	u, began := debounce{until: map[meta.Ref]time.Time{}}, time.Now()
	for _, c := range []struct {
		name string
		at   time.Duration
		calm bool // else there is a change just then
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

// TestRest: while changes go on, each volume is written once, maxDelay after its first change. When
// they end, all volumes are written soon.
func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(clustertest.NewOf(t, "node-1", nil, clustertest.Nowhere(t), clustertest.NewNode()))
		began, looked := time.Now(), map[string][]time.Duration{}
		l.Node.Looked = func(ref meta.Ref) { looked[ref.ID] = append(looked[ref.ID], time.Since(began)) }
		go l.subvolumes.Run(t.Context())
		const each = calm / 5
		for i := range int(3 * maxDelay / each) {
			l.subvolumes.Changed(meta.Volume(fmt.Sprintf("pvc-%d", i/2))) // each twice
			time.Sleep(each)
		}
		end := time.Since(began) - each
		time.Sleep(2 * maxDelay)
		synctest.Wait()
		for i := range int(3 * maxDelay / each / 2) {
			name, changed := fmt.Sprintf("pvc-%d", i), 2*time.Duration(i)*each
			want := min(changed+calm+maxDelay, end+calm)
			if got := looked[name]; len(got) != 1 || got[0] < want || got[0] > want+calm {
				t.Errorf("%s, changed after %v: want it looked at after %v, got %v", name, changed, want, got)
			}
		}
	})
}
