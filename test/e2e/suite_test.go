//go:build e2e

package e2e

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
)

// suiteDoc lists which of Kubernetes' storage tests pass, and why the others do not run.
// TestExternalStorage checks both.
const suiteDoc = "../../docs/external-storage.md"

const (
	suiteProcesses = 8 // most of the time they wait
	suiteTimeout   = "40m"
)

// leftOut are the tests that fail because this cluster lacks something, and the one that wants a block
// volume to be refused.
var leftOut = []string{`\[Disruptive\]`, `any volume data source`, `should fail in binding dynamic provisioned PV to PVC`}

// slow marks the tests that only a full run includes.
const slow = "[Slow]"

// TestExternalStorage runs Kubernetes' own storage tests except those marked [Slow]. With E2E_SUITE=full it
// runs these, too. With E2E_NODES=1 the cluster has one node.
func TestExternalStorage(t *testing.T) {
	run := &suiteRun{T: t, full: os.Getenv("E2E_SUITE") == "full", nodes: len(lab.Nodes)}
	run.readDoc()
	run.driver = run.driverFile()
	run.undefined()
	failed := run.tests()
	run.print()
	run.check()
	if failed != nil && !t.Failed() {
		t.Errorf("no test has failed, but: %v", failed)
	}
	eventually(t, "nothing is left of the tests", nothingOfSuite)
}

// suiteRun is one run of the suite.
type suiteRun struct {
	*testing.T
	full   bool
	nodes  int
	driver string // the path of the description of the driver

	promised map[string]int // the tests that must pass, by group
	reasons  []*reason
	passed   map[string]int
	skipped  int
	took     time.Duration
}

// reason is a row of the document: why some tests do not run.
type reason struct {
	words []string // the name of such a test contains all of them
	nodes []string // "1", "2"
	why   string
	tests int // the number of such tests
}

// readDoc reads the tables of the document that have the wanted columns.
func (r *suiteRun) readDoc() {
	r.Helper()
	text, err := os.ReadFile(suiteDoc)
	if err != nil {
		r.Fatal(err)
	}
	r.promised = map[string]int{}
	var header []string
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case !strings.HasPrefix(line, "|"):
			header = nil
		case header == nil:
			header = cells
		case strings.HasPrefix(cells[0], "---"):
		case header[0] == "group":
			r.readPromise(header, cells)
		case header[0] == "tests":
			r.reasons = append(r.reasons, &reason{words: quoted(cells[0]), nodes: strings.Split(cells[1], ", "), why: cells[2]})
		}
	}
	if len(r.promised) == 0 || len(r.reasons) == 0 {
		r.Fatalf("%s has to have a table whose first column is \"group\", and one where it is \"tests\"", suiteDoc)
	}
}

func (r *suiteRun) readPromise(header, cells []string) {
	r.Helper()
	column := slices.Index(header, r.kind())
	if column < 0 {
		r.Fatalf("%s: the table of groups has no column %q, but %q", suiteDoc, r.kind(), header)
	}
	tests, err := strconv.Atoi(cells[column])
	if err != nil {
		r.Fatalf("%s: group %s: %v", suiteDoc, cells[0], err)
	}
	if tests > 0 {
		r.promised[strings.Trim(cells[0], "`")] = tests
	}
}

// kind returns the heading of the column for such a run.
func (r *suiteRun) kind() string {
	kind := fmt.Sprintf("%d nodes", r.nodes)
	if r.nodes == 1 {
		kind = "1 node"
	}
	if !r.full {
		return kind + ", fast"
	}
	return kind
}

// quoted returns the parts of a text in backquotes.
func quoted(text string) (words []string) {
	for _, match := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(text, -1) {
		words = append(words, match[1])
	}
	return words
}

// driverFile completes testdata/driver.yaml with the topology keys, which contain the IDs of pools. The
// tests expect each node to have all keys, which is true only for a cluster of one node.
func (r *suiteRun) driverFile() string {
	r.Helper()
	text, err := os.ReadFile("testdata/driver.yaml")
	if err != nil {
		r.Fatal(err)
	}
	var definition map[string]any
	if err := yaml.UnmarshalStrict(text, &definition); err != nil {
		r.Fatal(err)
	}
	if r.nodes == 1 {
		definition["DriverInfo"].(map[string]any)["TopologyKeys"] = []string{topologyPrefix + poolID(r.T, lab.Nodes[0], "default")}
	}
	text, err = yaml.Marshal(definition)
	if err != nil {
		r.Fatal(err)
	}
	file := filepath.Join(r.TempDir(), "driver.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		r.Fatal(err)
	}
	return file
}

// command returns a command that runs a program of the suite.
func (r *suiteRun) command(program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(r.Context(), lab.Program(program), args...)
	// kubectl exec by websockets sometimes closes its streams if processors are short.
	cmd.Env = append(os.Environ(), "KUBE_TEST_REPO_LIST="+cluster.Components().Repositories, "DEBUG_STORAGE_TESTSUITE=1",
		"KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false")
	return cmd
}

// flags returns the flags of the tests.
func (r *suiteRun) flags() []string {
	return []string{"-kubeconfig=" + lab.Kubeconfig(), "-provider=local", "-storage.testdriver=" + r.driver}
}

// undefined returns the tests that do not exist for a driver like this one, with the reasons.
func (r *suiteRun) undefined() {
	r.Helper()
	out, err := r.command("e2e.test", append(r.flags(), "-ginkgo.dry-run", "-ginkgo.focus=External.Storage")...).CombinedOutput()
	if err != nil {
		r.Fatalf("list the tests: %v: %s", err, out)
	}
	line := regexp.MustCompile(`(?m)^Skipping registration: (.*) \[Driver: ` + regexp.QuoteMeta(driverName) + `\] - (.*)$`)
	found := map[string]string{} // each is printed several times
	for _, match := range line.FindAllStringSubmatch(string(out), -1) {
		found[match[1]] = match[2]
	}
	if len(found) == 0 {
		r.Errorf("the tests do not print any more which of them they leave out; the output began with:\n%.2000s", out)
	}
	for name, why := range found {
		r.skip(name, why)
	}
}

// spec is a test in ginkgo's report.
type spec struct {
	ContainerHierarchyTexts []string
	LeafNodeText            string
	LeafNodeType            string
	State                   string
	RunTime                 time.Duration
	Failure                 struct{ Message string }
}

func (s spec) name() string {
	return strings.Join(append(s.ContainerHierarchyTexts[1:], s.LeafNodeText), " ")
}

// group returns the word after the pattern in a test's name.
func group(name string) string {
	_, rest, _ := strings.Cut(name, "] ")
	group, _, _ := strings.Cut(rest, " ")
	return group
}

// tests runs the tests. It returns an error if a test failed, or the run itself.
func (r *suiteRun) tests() error {
	r.Helper()
	skip := slices.Clone(leftOut)
	if !r.full {
		skip = append(skip, regexp.QuoteMeta(slow))
	}
	const report = "external-storage.json"
	log, err := os.Create(filepath.Join(lab.LogDir(), "external-storage.log"))
	if err != nil {
		r.Fatal(err)
	}
	defer log.Close()
	cmd := r.command("ginkgo", append([]string{
		fmt.Sprintf("-procs=%d", suiteProcesses), "-focus=External.Storage", "-skip=" + strings.Join(skip, "|"),
		"-timeout=" + suiteTimeout, "-no-color", "-json-report=" + report, "-output-dir=" + lab.LogDir(), lab.Program("e2e.test"), "--",
	}, r.flags()...)...)
	cmd.Stdout, cmd.Stderr = log, log
	began := time.Now()
	failed := cmd.Run()
	r.took = time.Since(began)
	if err := r.readReport(filepath.Join(lab.LogDir(), report)); err != nil {
		r.Fatalf("%v; what the tests said is in %s", errors.Join(failed, err), log.Name())
	}
	return failed
}

// readReport counts the tests that passed, fails for those that failed, and looks up the reason of those
// that were skipped.
func (r *suiteRun) readReport(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	var reports []struct{ SpecReports []spec }
	if err := json.NewDecoder(bufio.NewReader(f)).Decode(&reports); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	r.passed = map[string]int{}
	for _, report := range reports {
		for _, s := range report.SpecReports {
			r.count(s)
		}
	}
	return nil
}

func (r *suiteRun) count(s spec) {
	ours := len(s.ContainerHierarchyTexts) > 1 && strings.HasPrefix(s.ContainerHierarchyTexts[0], "External Storage")
	switch {
	case s.State == "passed" && ours:
		r.passed[group(s.name())]++
	case s.State == "skipped" && ours:
		if r.full || !strings.Contains(s.name(), slow) {
			r.skip(s.name(), s.Failure.Message)
		}
	case s.State != "passed" && s.State != "skipped":
		what := s.LeafNodeType
		if ours {
			what = s.name()
		}
		r.Errorf("%s, after %.0f s: %s: %.2000s", s.State, s.RunTime.Seconds(), what, s.Failure.Message)
	}
}

// skip records that a test, or all of a group, did not run.
func (r *suiteRun) skip(name, why string) {
	r.skipped++
	known := false
	for _, reason := range r.reasons {
		if reason.is(name, r.nodes) {
			reason.tests++
			known = true
		}
	}
	if !known {
		r.Errorf("not run, and %s has no reason: %s: %s", suiteDoc, name, cmp.Or(why, "left out here"))
	}
}

// is reports whether this is the reason why a test does not run.
func (r *reason) is(name string, nodes int) bool {
	return slices.Contains(r.nodes, strconv.Itoa(nodes)) &&
		!slices.ContainsFunc(r.words, func(word string) bool { return !strings.Contains(name, word) })
}

// print prints the result.
func (r *suiteRun) print() {
	var b strings.Builder
	all := 0
	for _, name := range slices.Sorted(maps.Keys(r.passed)) {
		fmt.Fprintf(&b, "\n%4d passed   %s", r.passed[name], name)
		all += r.passed[name]
	}
	for _, reason := range r.reasons {
		if reason.tests > 0 {
			fmt.Fprintf(&b, "\n%4d not run  %s: %s", reason.tests, strings.Join(reason.words, " "), reason.why)
		}
	}
	r.Logf("External.Storage, %s: %d tests passed, %d tests and groups were not run, %.0f s%s", r.kind(), all, r.skipped, r.took.Seconds(), b.String())
}

// check compares the result with the document.
func (r *suiteRun) check() {
	names := maps.Clone(r.promised)
	maps.Copy(names, r.passed)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if have, want := r.passed[name], r.promised[name]; have != want {
			r.Errorf("%s, %s: %d tests passed, %s says %d", name, r.kind(), have, suiteDoc, want)
		}
	}
	for _, reason := range r.reasons {
		if r.full && reason.tests == 0 && slices.Contains(reason.nodes, strconv.Itoa(r.nodes)) {
			r.Errorf("%s has a reason for tests that there are not: %s", suiteDoc, strings.Join(reason.words, " "))
		}
	}
}

// nothingOfSuite fails while a volume or a snapshot exists. The tests must delete all, also what they
// retained.
func nothingOfSuite() error {
	volumes, err := api().CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	contents, err := lab.snapshots.SnapshotV1().VolumeSnapshotContents().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	subvolumes, err := lab.subvolumes.List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	if v, c, s := len(volumes.Items), len(contents.Items), len(subvolumes.Items); v+c+s > 0 {
		return fmt.Errorf("there are %d PersistentVolumes, %d VolumeSnapshotContents, %d Subvolumes", v, c, s)
	}
	return nil
}

// TestAllowedTopologies replaces the group topology of Kubernetes' tests, which does not support keys that
// only one node has.
func TestAllowedTopologies(t *testing.T) {
	t.Parallel()
	t.Run("delayed binding", func(t *testing.T) {
		testAllowedTopologies(t, "didn't find available persistent volumes to bind")
	})
	t.Run("immediate binding", func(t *testing.T) {
		testAllowedTopologies(t, "didn't match PersistentVolume's node affinity", immediate)
	})
}

// testAllowedTopologies: volumes of a class are created where the class allows it. A pod that must run on
// the other node gets an Event that says why it cannot.
func testAllowedTopologies(t *testing.T, why string, options ...func(*storagev1.StorageClass)) {
	t.Parallel()
	one, two := lab.Nodes[0], lab.Nodes[1]
	class := newClass(t, nil, append(options, func(c *storagev1.StorageClass) {
		c.AllowedTopologies = []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{
			{Key: topologyPrefix + poolID(t, two, "default"), Values: []string{"true"}},
		}}}
	})...)
	s := newSpace(t)
	s.claim("there", ofClass(class))
	s.pod("there")
	s.ran("there", two)
	s.claim("elsewhere", ofClass(class))
	s.pod("elsewhere", on(one))
	s.event("Pod", "elsewhere", "FailedScheduling", why)
	if events := s.events("PersistentVolumeClaim", "elsewhere", "ProvisioningFailed"); len(events) > 0 {
		t.Errorf("the volume was tried where it is not allowed: %q", events)
	}
}
