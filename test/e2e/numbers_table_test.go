//go:build e2e

package e2e

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// operation is an operation for which users wait.
type operation struct {
	name  string
	steps []step   // in this order
	rpcs  []string // of the driver, as a part of it
}

// step is the part of an operation that ends with a milestone.
type step struct{ milestone, whose string }

// of returns the operation for another kind of object.
func (o operation) of(kind string) operation {
	o.name += ", " + kind
	return o
}

// numbers measures operations and reports the results.
type numbers struct {
	*space
	seen    *recorder
	results []*result
	floor   []line
}

// result has the measurements of one operation.
type result struct {
	operation
	once  bool            // all samples were started at once
	all   time.Duration   // from the first start to the last end
	total []time.Duration // of each sample
	parts [][]time.Duration
	spent map[string]rpc           // in the driver, by method
	cpu   map[string]time.Duration // of all processes, if all samples were started at once
	after map[string]time.Duration // of all processes, from the last end until nothing is written any more
}

// line is a row of durations.
type line struct {
	name string
	took []time.Duration
}

// oneByOne measures an operation for each name, one after the other. Another call adds to the result.
func (n *numbers) oneByOne(o operation, names []string, begin func(string)) {
	n.Helper()
	r := n.result(o, false)
	before := n.rpcs()
	for _, name := range names {
		n.note(r, name, n.begin(begin, name))
	}
	r.spend(before, n.rpcs())
}

// atOnce measures an operation for all names at the same time, and then the processor time of the work that
// remains. It returns when that work is done.
func (n *numbers) atOnce(o operation, names []string, begin func(string)) {
	n.Helper()
	r := n.result(o, true)
	before, idle := n.rpcs(), n.cpu()
	began := make([]time.Time, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() { began[i] = n.begin(begin, name) })
	}
	all.Wait()
	var last time.Time
	for i, name := range names {
		if end := n.note(r, name, began[i]); end.After(last) {
			last = end
		}
	}
	r.all = last.Sub(slices.MinFunc(began, time.Time.Compare))
	done := n.cpu()
	r.cpu = since(idle, done)
	r.spend(before, n.rpcs())
	n.rest()
	r.after = since(done, n.cpu())
}

// since returns the processor time between two moments.
func since(before, after map[string]time.Duration) map[string]time.Duration {
	used := map[string]time.Duration{}
	for program, time := range after {
		used[program] = time - before[program]
	}
	return used
}

func (n *numbers) begin(begin func(string), name string) time.Time {
	began := time.Now()
	begin(name)
	return began
}

func (n *numbers) result(o operation, once bool) *result {
	for _, r := range n.results {
		if r.name == o.name && r.once == once {
			return r
		}
	}
	r := &result{operation: o, once: once, parts: make([][]time.Duration, len(o.steps)), spent: map[string]rpc{}}
	n.results = append(n.results, r)
	return r
}

// note waits for the end of a sample, adds it to a result and returns its end. The watches of two kinds are not in
// step. A milestone that is seen before the preceding one counts as seen at the same time as that.
func (n *numbers) note(r *result, name string, began time.Time) time.Time {
	n.Helper()
	last := began
	for i, step := range r.steps {
		at, ok := n.seen.wait(milestone{step.milestone, name})
		if !ok {
			n.Fatalf("waited %v for %s, of %q, that the %s\n%s", patience, r.name, name, step.milestone, explain(n.ns, driverNamespace))
		}
		if at.Before(last) {
			at = last
		}
		r.parts[i] = append(r.parts[i], at.Sub(last))
		last = at
	}
	r.total = append(r.total, last.Sub(began))
	return last
}

// recorder records the times of milestones.
type recorder struct {
	mu      sync.Mutex
	reached map[milestone]*moment
}

// milestone is a state that an object reaches.
type milestone struct{ what, name string }

type moment struct {
	done chan struct{} // closed when it is reached
	at   time.Time     // set before
}

func newRecorder() *recorder { return &recorder{reached: map[milestone]*moment{}} }

// watch watches the objects of the test until its end.
func (r *recorder) watch(t *testing.T, namespace string) {
	record(t, r, api().CoreV1().PersistentVolumeClaims(namespace), claimGone, claimMilestones)
	record(t, r, api().CoreV1().PersistentVolumes(), volumeGone, volumeMilestones)
	record(t, r, api().CoreV1().Pods(namespace), "", podMilestones)
	record(t, r, lab.snapshots.SnapshotV1().VolumeSnapshots(namespace), snapshotGone, snapshotMilestones)
	record(t, r, lab.snapshots.SnapshotV1().VolumeSnapshotContents(), contentGone, contentMilestones)
}

// record records the milestones of objects of one kind. The API server ends a watch that it cannot serve in time,
// as in a burst. The next watch goes on at the same place.
func record[T object, L kruntime.Object](t *testing.T, r *recorder, client watched[L], gone string, of func(T) (string, map[string]bool)) {
	t.Helper()
	list, err := client.List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	access, err := meta.ListAccessor(list)
	if err != nil {
		t.Fatal(err)
	}
	version := access.GetResourceVersion()
	go func() {
		for t.Context().Err() == nil {
			events, err := client.Watch(t.Context(), metav1.ListOptions{ResourceVersion: version})
			if err != nil {
				return // wait reports the missing milestone
			}
			for event := range events.ResultChan() {
				now := time.Now()
				o, ok := event.Object.(T)
				if !ok {
					break
				}
				version = o.GetResourceVersion()
				name, reached := of(o)
				reached[gone] = event.Type == watch.Deleted
				r.noteAll(name, reached, now)
			}
			events.Stop()
		}
	}()
}

func (r *recorder) noteAll(name string, reached map[string]bool, now time.Time) {
	for what, is := range reached {
		if is {
			r.note(milestone{what, name}, now)
		}
	}
}

func (r *recorder) moment(m milestone) *moment {
	at, ok := r.reached[m]
	if !ok {
		at = &moment{done: make(chan struct{})}
		r.reached[m] = at
	}
	return at
}

// note records the first time at which a milestone was reached.
func (r *recorder) note(m milestone, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if moment := r.moment(m); moment.at.IsZero() {
		moment.at = now
		close(moment.done)
	}
}

// wait waits until a milestone is reached, and returns that time.
func (r *recorder) wait(m milestone) (time.Time, bool) {
	r.mu.Lock()
	moment := r.moment(m)
	r.mu.Unlock()
	select {
	case <-moment.done:
		return moment.at, true
	case <-time.After(patience):
		return time.Time{}, false
	}
}

// rpc has the number of calls of a method of the driver, and their total time.
type rpc struct {
	count int
	took  time.Duration
}

// operationMetric matches a line of the driver's metrics.
var operationMetric = regexp.MustCompile(`(?m)^btrfs_csi_operation_duration_seconds_(sum|count)\{.*method="(\w+)".*\} (\S+)$`)

// rpcs returns the calls of the drivers of all nodes until now.
func (n *numbers) rpcs() map[string]rpc {
	n.Helper()
	done := map[string]rpc{}
	for _, node := range lab.Nodes {
		pod, err := driverPod(node)
		n.no(err)
		text, err := api().CoreV1().Pods(driverNamespace).ProxyGet("http", pod.Name, "9808", "/metrics", nil).DoRaw(ctx)
		n.no(err)
		for _, match := range operationMetric.FindAllStringSubmatch(string(text), -1) {
			value, err := strconv.ParseFloat(match[3], 64)
			n.no(err)
			r := done[match[2]]
			if match[1] == "count" {
				r.count += int(value)
			} else {
				r.took += time.Duration(value * float64(time.Second))
			}
			done[match[2]] = r
		}
	}
	return done
}

// spend adds the calls of the drivers between two moments.
func (r *result) spend(before, after map[string]rpc) {
	for method, now := range after {
		spent := r.spent[method]
		spent.count += now.count - before[method].count
		spent.took += now.took - before[method].took
		r.spent[method] = spent
	}
}

// cpu returns the processor time of all processes of the lab, by program. With few processors, many users at
// once wait for that.
func (n *numbers) cpu() map[string]time.Duration {
	const ticks = 100 // a second, on all architectures
	used := map[string]time.Duration{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		line, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
		program, _, _ := strings.Cut(string(line), "\x00")
		_, rest, _ := strings.Cut(string(stat), ") ")
		for _, field := range strings.Fields(rest)[11:13] { // utime, stime
			value, err := strconv.Atoi(field)
			n.no(err)
			used[filepath.Base(program)] += time.Duration(value) * time.Second / ticks
		}
	}
	return used
}

// title returns the title of a result.
func (r *result) title() string {
	if r.once {
		return fmt.Sprintf("%d at once: %s", len(r.total), r.name)
	}
	return r.name
}

// table has rows of cells. The first row is the head.
type table [][]string

// waits returns the table of the times that users wait.
func (n *numbers) waits() table {
	t := table{{"what", "samples", "median", "p99", "all done"}}
	for _, r := range n.results {
		all := ""
		if r.once {
			all = show(r.all)
		}
		t = append(t, []string{r.title(), strconv.Itoa(len(r.total)), show(quantile(r.total, 0.5)), show(quantile(r.total, 0.99)), all})
	}
	return t
}

// shares returns the table of the parts of these times.
func (n *numbers) shares() table {
	t := table{{"what", "until", "whose", "median", "p99"}}
	for _, r := range n.results {
		name := r.title()
		for i, step := range r.steps {
			t = append(t, []string{name, step.milestone, step.whose, show(quantile(r.parts[i], 0.5)), show(quantile(r.parts[i], 0.99))})
			name = ""
		}
		for _, method := range r.rpcs {
			if spent := r.spent[method]; spent.count > 0 {
				mean := show(spent.took / time.Duration(spent.count))
				t = append(t, []string{"", "", fmt.Sprintf("the driver itself: %d %s", spent.count, method), "mean " + mean, ""})
			}
		}
	}
	return t
}

// work returns the table of processor time, meanwhile and afterwards.
func (n *numbers) work() table {
	t := table{{"what", "processor time"}}
	for _, r := range n.results {
		if r.once {
			t = append(t, []string{r.title(), spread(r.cpu)}, []string{"until nothing is written any more", spread(r.after)})
		}
	}
	return t
}

// spread returns the total processor time, and that of each program with much of it.
func spread(cpu map[string]time.Duration) string {
	var all time.Duration
	var programs []string
	for program, used := range cpu {
		all += used
		if used >= 50*time.Millisecond {
			programs = append(programs, program)
		}
	}
	slices.SortFunc(programs, func(a, b string) int { return cmp.Compare(cpu[b], cpu[a]) })
	for i, program := range programs {
		programs[i] += " " + show(cpu[program])
	}
	return show(all) + ": " + strings.Join(programs, ", ")
}

// bottom returns the table of the times of btrfs alone.
func (n *numbers) bottom() table {
	t := table{{"btrfs alone", "samples", "median", "p99"}}
	for _, f := range n.floor {
		t = append(t, []string{f.name, strconv.Itoa(len(f.took)), show(quantile(f.took, 0.5)), show(quantile(f.took, 0.99))})
	}
	return t
}

// text returns all tables for a terminal.
func (n *numbers) text() string {
	var b strings.Builder
	for _, t := range []table{n.waits(), n.shares(), n.work(), n.bottom()} {
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, row := range t {
			fmt.Fprintln(w, strings.Join(row, "\t"))
		}
		w.Flush()
		fmt.Fprintln(&b)
	}
	return b.String()
}

// markdown returns all tables for the documentation.
func (n *numbers) markdown() string {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	kernel := strings.SplitN(string(release), ".", 3) // without the suffix of the distribution
	var b strings.Builder
	fmt.Fprintf(&b, numbersIntroduction, runtime.NumCPU(), strings.Join(kernel[:min(2, len(kernel))], "."))
	for _, part := range []struct {
		title string
		table table
	}{{"How long one waits", n.waits()}, {"For whom", n.shares()}, {"What the processors do", n.work()}, {"What btrfs takes", n.bottom()}} {
		fmt.Fprintf(&b, "\n## %s\n\n", part.title)
		for i, row := range part.table {
			fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
			if i == 0 {
				fmt.Fprintln(&b, strings.Repeat("|---", len(row))+"|")
			}
		}
	}
	return b.String()
}

const numbersIntroduction = `# Numbers

Measured by ` + "`make e2e`" + ` on a Kubernetes of two nodes, all of it on one machine with
%d cores and Linux %s: etcd, the control plane, both kubelets, and the test share them.
The control plane runs with GOGC=400: memory is not what is short here.
The pools are btrfs in sparse files, with full quota. Written by the test, not by hand:
` + "`make e2e E2E_NUMBERS=docs/numbers.md`" + `.

A time begins before the request is sent and ends when the event of a watch arrives.
"All done" is from the first of many requests at once to the last event. They begin
when nothing is written any more of what was before. What is
"whose" follows from the events in between; of it, what the driver itself takes is the
mean from its metric ` + "`btrfs_csi_operation_duration_seconds`" + `.
`

// quantile returns the duration that a share of all does not exceed.
func quantile(all []time.Duration, share float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(int(share*float64(len(sorted))), len(sorted)-1)]
}

// show returns a duration, rounded.
func show(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", d.Seconds()*1000)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", d.Seconds()*1000)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}
