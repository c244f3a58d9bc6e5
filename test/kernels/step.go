package main

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// step is one thing that a guest does.
type step struct {
	name    string
	title   string   // in the document
	needs   []string // programs
	command string   // of the shell, in the source tree
	short   bool
}

var steps = []step{
	{"btrfs", "`pkg/btrfs`", []string{"btrfs"}, testOf("btrfs", "pkg/btrfs"), true},
	{"sanity", "csi-sanity", []string{"sanity"}, testOf("sanity", "test/sanity"), true},
	{"demo", "demo", []string{"demo", "btrfs-csi"}, "/job/bin/demo --binary /job/bin/btrfs-csi", false},
	{"kills", "kills", []string{"reliability", "btrfs-csi"}, reliability("RELIABILITY_KILLS=6", "TestKilledDriver"), false},
	{"cuts", "power cuts", []string{"reliability", "btrfs-csi"}, reliability("RELIABILITY_CUTS=6", "TestPowerCut"), false},
	{"mount", "`pkg/mount`", []string{"mount"}, testOf("mount", "pkg/mount"), false},
	{"pool", "`pkg/pool`", []string{"pool"}, testOf("pool", "pkg/pool"), false},
	{"driver", "`pkg/driver`", []string{"driver"}, testOf("driver", "pkg/driver"), false},
	{"command", "`cmd/btrfs-csi`", []string{"command"}, testOf("command", "cmd/btrfs-csi"), false},
	{"snapshot", "`pkg/snapshot`", []string{"snapshot"}, testOf("snapshot", "pkg/snapshot"), false},
}

// refusal is what a guest below the floor does instead.
var refusal = step{"refused", "", []string{"btrfs-csi"},
	`/job/bin/btrfs-csi serve --state-dir /tmp/state --endpoint unix:///tmp/csi.sock; code=$?; [ $code = 1 ]`, true}

func testOf(program, dir string) string {
	return fmt.Sprintf("cd /tmp/src/%s && /job/bin/%s -test.v -test.timeout 90m -test.run \"$tests\"", dir, program)
}

func reliability(variable, test string) string {
	return fmt.Sprintf("cd /tmp/src/test/reliability/soak && RELIABILITY_BINARY=/job/bin/btrfs-csi %s /job/bin/reliability -test.v -test.timeout 90m -test.run '^%s$'", variable, test)
}

// script returns the job of a guest, with a pattern of the tests to run.
func script(steps []step, tests string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "cp -r /job/src /tmp/src\ntests='%s'\n", tests)
	for _, s := range steps {
		fmt.Fprintf(&b, `echo ":: %[1]s"
began=$(cut -d. -f1 /proc/uptime)
( %[2]s ) > /tmp/out/%[1]s.log 2>&1
echo "$? $(( $(cut -d. -f1 /proc/uptime) - began ))" > /tmp/out/%[1]s.end
grep -a -- '--- FAIL' /tmp/out/%[1]s.log | sed 's/^/:: /'
echo ":: %[1]s ended, exit code and seconds: $(cat /tmp/out/%[1]s.end)"
`, s.name, s.command)
	}
	return b.String()
}

// outcome is what came of a step.
type outcome struct {
	Code                    int           // exit code; -1: it never ended
	Took                    time.Duration // with emulation
	Passed, Failed, Skipped int           // tests
	Specs                   string        // of csi-sanity
	Failures                []string      // names of tests
}

func (o outcome) ok() bool { return o.Code == 0 && o.Failed == 0 }

// String returns the outcome for the document.
func (o outcome) String() string {
	switch {
	case o.Code == -1:
		return "**did not end**"
	case !o.ok() && o.Failed == 0:
		return "**failed**"
	case !o.ok():
		return fmt.Sprintf("**%d failed**, %d passed", o.Failed, o.Passed)
	case o.Specs != "":
		return o.Specs
	case o.Skipped > 0:
		return fmt.Sprintf("%d passed, %d skipped", o.Passed, o.Skipped)
	case o.Passed > 0:
		return fmt.Sprintf("%d passed", o.Passed)
	}
	return "passed"
}

var (
	testLine = regexp.MustCompile(`(?m)^ *--- (PASS|FAIL|SKIP): (\S+)`)
	specLine = regexp.MustCompile(`Ran (\d+) of (\d+) Specs`)
)

// read fills an outcome with what a step printed.
func (o *outcome) read(log string) {
	for _, line := range testLine.FindAllStringSubmatch(log, -1) {
		switch line[1] {
		case "PASS":
			o.Passed++
		case "SKIP":
			o.Skipped++
		default:
			o.Failed++
			o.Failures = append(o.Failures, line[2])
		}
	}
	if specs := specLine.FindStringSubmatch(log); specs != nil {
		o.Specs = fmt.Sprintf("%s of %s specs", specs[1], specs[2])
	}
}
