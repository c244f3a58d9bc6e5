package fuzz

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Result is the fuzzing of one target.
type Result struct {
	Package string        `json:"package"` // import path
	Target  string        `json:"target"`
	Elapsed time.Duration `json:"elapsed"`
	Inputs  int           `json:"inputs"`
}

// Report has the results of all targets.
type Report []Result

// Run runs every native fuzz target below pkg of a module, one after the other, each for the same
// time. It stops at the first that fails.
func Run(ctx context.Context, source string, each time.Duration, log func(string, ...any)) (Report, error) {
	targets, err := fuzzTargets(ctx, source)
	if err != nil {
		return nil, err
	}
	var done Report
	for i, f := range targets {
		log("fuzzing %s.%s, %d of %d, for %v", path.Base(f.Package), f.Target, i+1, len(targets), each)
		if err := f.run(ctx, source, each); err != nil {
			return done, err
		}
		done = append(done, f)
	}
	return done, nil
}

// fuzzTargets lists all targets.
func fuzzTargets(ctx context.Context, source string) ([]Result, error) {
	out, err := goTest(ctx, source, "-list", "^Fuzz", "./pkg/...")
	if err != nil {
		return nil, err
	}
	targets := parseTargets(string(out))
	if len(targets) == 0 {
		return nil, fmt.Errorf("no fuzz target below %s/pkg: %s", source, out)
	}
	return targets, nil
}

// parseTargets reads what go test -list prints: the targets of a package, then a line
// that names it.
func parseTargets(list string) (targets []Result) {
	named := 0 // the targets whose package is known
	for line := range strings.Lines(list) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 1 && strings.HasPrefix(fields[0], "Fuzz"):
			targets = append(targets, Result{Target: fields[0]})
		case len(fields) > 1 && fields[0] == "ok":
			for ; named < len(targets); named++ {
				targets[named].Package = fields[1]
			}
		}
	}
	return targets
}

// run fuzzes one target. It does not minimize an input that fails, because that may take longer than
// the fuzzing. Go keeps the input in the directory of the package.
func (f *Result) run(ctx context.Context, source string, each time.Duration) error {
	out, err := goTest(ctx, source, "-run", "^$", "-fuzz", "^"+f.Target+"$", "-fuzztime", each.String(), "-fuzzminimizetime", "1x", f.Package)
	f.Elapsed, f.Inputs = fuzzed(out)
	if endedLate.Match(out) && ctx.Err() == nil {
		err = nil
	}
	if err == nil && f.Inputs == 0 {
		err = errors.New("it tried no input")
	}
	if err != nil {
		return fmt.Errorf("fuzz %s: %w\n%s", f.Target, err, out)
	}
	return nil
}

func goTest(ctx context.Context, source string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test"}, args...)...)
	cmd.Dir = source
	// go test passes an interrupt on, and waits for what it has started.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(out))
	}
	return out, err
}

// endedLate matches a failure without an input. go test -fuzz sometimes reports it when its time ends
// in the middle of an input.
var endedLate = regexp.MustCompile(`(?m)^--- FAIL: \S+ \(\S+\)\n    context deadline exceeded\nFAIL$`)

// fuzzing matches a line of progress of go test -fuzz.
var fuzzing = regexp.MustCompile(`(?m)^fuzz: elapsed: (\S+), execs: (\d+) `)

// fuzzed returns the time and the number of inputs in the last line of progress.
func fuzzed(out []byte) (elapsed time.Duration, inputs int) {
	for _, match := range fuzzing.FindAllSubmatch(out, -1) {
		elapsed, _ = time.ParseDuration(string(match[1]))
		inputs, _ = strconv.Atoi(string(match[2]))
	}
	return elapsed, inputs
}

// Elapsed returns the time of all targets.
func (r Report) Elapsed() (total time.Duration) {
	for _, f := range r {
		total += f.Elapsed
	}
	return total
}

// Inputs returns the number of all inputs.
func (r Report) Inputs() (n int) {
	for _, f := range r {
		n += f.Inputs
	}
	return n
}

// String returns a line for each target.
func (r Report) String() string {
	var b strings.Builder
	for _, f := range r {
		fmt.Fprintf(&b, "fuzzed %-30s %6v %10d inputs\n", path.Base(f.Package)+"."+f.Target, f.Elapsed.Round(time.Second), f.Inputs)
	}
	return b.String()
}
