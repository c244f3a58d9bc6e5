package simulate

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/orphans"
)

// plan is all that happens to a cluster. What is left open, above all who goes next, follows
// from its seed.
type plan struct {
	seed    uint64
	nodes   int
	quota   btrfs.QuotaMode
	orphans orphans.Policy
	grace   time.Duration
	noise   noise
	actions []action
}

// noise is what goes wrong all the time, in a thousandth of all that passes the gate.
type noise struct {
	fail, lose, conflict, expire int
	slowWatches                  bool
}

// action is something that users, administrators or accidents do.
type action struct {
	kind  string
	which int // of the objects that it may concern
	after int // steps since the one before
}

func (a action) String() string { return fmt.Sprintf("%s/%d+%d", a.kind, a.which, a.after) }

func (p plan) String() string {
	var actions []string
	for _, a := range p.actions {
		actions = append(actions, a.String())
	}
	return fmt.Sprintf("seed %d, %d nodes, quota %s, orphans %s after %v, noise %+v\n%s", p.seed, p.nodes, p.quota, p.orphans, p.grace, p.noise, strings.Join(actions, " "))
}

// users are the kinds of actions without a fault; each of the others is a fault that a
// cluster has or has not.
var (
	users  = []string{"create", "create", "create", "copy", "restore", "snapshot", "snapshot", "delete", "delete", "delete snapshot", "delete pod", "new pod", "expand"}
	faults = [][]string{
		{"restart"}, {"kill"}, {"kill", "lose index"}, {"power cut"}, {"restart sidecar"}, {"partition", "heal"}, {"drop watches"},
		{"two leaders", "new leader"}, {"move disk"}, {"unplug", "replug"}, {"silence", "answer"}, {"copy disk"},
		{"second volume", "retain"}, {"delete volume object"}, {"delete subvolume"}, {"delete pool"}, {"wait"},
	}
)

// mostActions is how many actions a plan has at most.
const mostActions = 60

// plans draws plans.
var plans = rapid.Custom(draw)

// focus are the faults of all plans, by the first action of each; "" has each plan draw them.
var focus = os.Getenv("SIMULATE_FOCUS")

func draw(t *rapid.T) plan {
	often := func() int { return one(t, []int{0, 0, 10, 50}) }
	p := plan{
		nodes: one(t, []int{2, 1, 3}),
		quota: one(t, []btrfs.QuotaMode{btrfs.QuotaFull, btrfs.QuotaSimple, btrfs.QuotaNone}),
		grace: time.Minute,
		noise: noise{fail: often(), lose: often(), conflict: often(), expire: often(), slowWatches: one(t, []bool{false, true})},
	}
	p.orphans = one(t, []orphans.Policy{orphans.Report, orphans.Delete})
	kinds := append([]string{}, users...)
	for _, f := range faults {
		has := one(t, []bool{false, false, true})
		if focus != "" {
			has = slices.Contains(strings.Split(focus, ","), f[0])
		}
		if has {
			kinds = append(append(kinds, f...), f...)
		}
	}
	for range mostActions {
		a := action{kind: one(t, append([]string{""}, kinds...)), which: one(t, numbers), after: one(t, []int{5, 0, 20, 80})}
		if a.kind != "" {
			p.actions = append(p.actions, a)
		}
	}
	p.seed = uint64(below(t, 1<<30))
	return p
}

var numbers = func() (numbers []int) {
	for i := range 32 {
		numbers = append(numbers, i)
	}
	return numbers
}()

// one draws one of several, each as likely as the others; the first is the simplest.
func one[T any](t *rapid.T, of []T) T { return of[below(t, len(of))] }

// below draws a number below n. The generators of numbers of rapid prefer small ones.
func below(t *rapid.T, n int) (i int) {
	for bound := 1; bound < 16*n; bound *= 2 {
		i *= 2
		if coin.Draw(t, "") {
			i++
		}
	}
	return i % n
}

var coin = rapid.Bool()
