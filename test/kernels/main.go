package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/btrfs-csi/btrfs-csi/build/image/debian"
)

func main() {
	var r run
	var names, only string
	flag.StringVar(&r.source, "source", "../..", "directory of the driver's module")
	flag.StringVar(&r.work, "work", "dist/kernels", "directory that keeps packages and systems")
	flag.StringVar(&r.arch, "arch", "amd64", "architecture: amd64 or arm64")
	flag.StringVar(&names, "kernels", "", "kernels, separated by commas, of "+kernels()+"; all that apt has by default")
	flag.StringVar(&only, "only", "", "names of steps, separated by commas; all by default")
	flag.StringVar(&r.tests, "run", "", "pattern of the tests to run in a step, as in go test -run; all by default")
	flag.BoolVar(&r.short, "short", false, "only the short steps, and no pool of one kernel on another")
	flag.StringVar(&r.sources, "sources", "", "sources file of apt with the mirrors, instead of those of this machine")
	flag.StringVar(&r.accel, "accel", "tcg", "accelerator of QEMU; kvm where it works")
	flag.StringVar(&r.docs, "docs", "", "directory whose kernels.md gets the results")
	flag.DurationVar(&r.limit, "limit", 4*time.Hour, "how long a guest may run before it is taken for hung")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := r.do(ctx, split(names), split(only))
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func split(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
}

// run runs the steps on all kernels of one architecture.
type run struct {
	source, work, arch, sources, accel, docs, tests string
	short                                           bool
	limit                                           time.Duration
	steps                                           []step
	began                                           time.Time
}

func (r *run) log(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "-- %4.0f s: %s\n", time.Since(r.began).Seconds(), fmt.Sprintf(format, args...))
}

// poolSize is that of the disk that other kernels read, in bytes.
const poolSize = 2 << 30

// guestMemory is enough for the system, which is in memory, and the tests, in MiB.
const guestMemory = 3072

func (r *run) do(ctx context.Context, names, only []string) error {
	r.began = time.Now()
	var err error
	if r.work, err = filepath.Abs(r.work); err != nil {
		return err
	}
	if r.source, err = filepath.Abs(r.source); err != nil {
		return err
	}
	r.steps = slices.DeleteFunc(slices.Clone(steps), func(s step) bool {
		return r.short && !s.short || len(only) > 0 && !slices.Contains(only, s.name)
	})
	all, err := r.all(ctx, names)
	if err != nil {
		return err
	}
	fmt.Print(table(all))
	err = r.document(all)
	for _, one := range all {
		err = errors.Join(err, one.wrong())
	}
	return err
}

func (r *run) document(all []*result) error {
	if r.docs == "" {
		return nil
	}
	return writeDocument(r.docs, all)
}

// all returns the results of the kernels with these names.
func (r *run) all(ctx context.Context, names []string) (all []*result, err error) {
	mirrors, err := mirrorsOf(ctx, r.sources)
	if err != nil {
		return nil, err
	}
	chosen, err := choose(names, mirrors)
	if err != nil {
		return nil, err
	}
	if r.arch != "amd64" { // Ubuntu has other architectures elsewhere
		chosen = slices.DeleteFunc(chosen, func(r release) bool { return r.distribution == "ubuntu" })
	}
	job, err := r.makeJob(ctx)
	if err != nil {
		return nil, err
	}
	for _, release := range chosen {
		one, err := r.kernel(ctx, release, mirrors[release.distribution], job)
		if err != nil {
			return nil, fmt.Errorf("kernel %s: %w", release.kernel, err)
		}
		all = append(all, one)
		if err := r.document(all); err != nil { // the next kernel may take hours
			return nil, err
		}
	}
	if r.short {
		return all, nil
	}
	return all, r.exchange(ctx, all, job)
}

// makeJob makes the directory that guests have at /job, but for the job itself.
func (r *run) makeJob(ctx context.Context) (string, error) {
	dir := filepath.Join(r.work, "_job-"+r.arch) // Go leaves out a directory of that name
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(filepath.Join(dir, "bin"), 0o755)); err != nil {
		return "", err
	}
	cc, err := debian.Output(exec.CommandContext(ctx, filepath.Join(r.source, "hack", "cc.sh"), r.arch))
	if err != nil {
		return "", err
	}
	wanted := map[string]bool{"btrfs-csi": true, "pool-tool": !r.short}
	for _, s := range r.steps {
		for _, name := range s.needs {
			wanted[name] = true
		}
	}
	if err := build(ctx, r.source, dir, r.arch, strings.TrimSpace(cc), wanted, r.log); err != nil {
		return "", err
	}
	return dir, copySource(ctx, r.source, filepath.Join(dir, "src"))
}

// system returns the system of a release, made anew if its packages have changed.
func (r *run) system(ctx context.Context, release release, mirror string) (s system, dir string, err error) {
	dir = filepath.Join(r.work, release.suite+"-"+r.arch)
	r.log("%s: getting the packages of %s %s for %s", release.kernel, release.distribution, release.suite, r.arch)
	packages, err := release.download(ctx, mirror, r.arch, dir)
	if err != nil {
		return s, dir, err
	}
	stamp := fmt.Sprintf("%x", sha256.Sum256(fmt.Append(nil, packages, initScript, modules)))
	known, _ := os.ReadFile(filepath.Join(dir, "stamp"))
	if have, version, _ := strings.Cut(string(known), " "); have == stamp {
		return system{filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd"), version}, dir, nil
	}
	r.log("%s: making the system", release.kernel)
	if s, err = makeSystem(ctx, packages, dir); err != nil {
		return s, dir, err
	}
	return s, dir, os.WriteFile(filepath.Join(dir, "stamp"), []byte(stamp+" "+s.version), 0o644)
}

// kernel boots a kernel for all steps.
func (r *run) kernel(ctx context.Context, release release, mirror, job string) (*result, error) {
	system, dir, err := r.system(ctx, release, mirror)
	if err != nil {
		return nil, err
	}
	steps, disks := r.steps, []string(nil)
	switch {
	case release.refuses:
		steps = []step{refusal}
	case !r.short:
		disk := filepath.Join(dir, "pool.img")
		if err := errors.Join(remove(disk), sparse(disk, poolSize)); err != nil {
			return nil, err
		}
		steps, disks = append([]step{writePool}, steps...), []string{disk}
	}
	files, err := r.boot(ctx, release, system, dir, job, steps, disks)
	if err != nil {
		return nil, err
	}
	one := &result{
		Kernel: release.kernel, Arch: r.arch, Suite: release.suite, Version: strings.TrimSpace(files["kernel"]), Progs: firstLine(files["progs"]),
		PageSize: strings.TrimSpace(files["pagesize"]), Date: time.Now().UTC().Format(time.DateOnly), Commit: r.commit(ctx),
		Outcomes: outcomes(steps, files), release: release, system: system, dir: dir, pool: slices.Concat(disks, []string{""})[0],
	}
	return one, keepLogs(filepath.Join(dir, "logs"), files)
}

func (r *run) boot(ctx context.Context, release release, system system, dir, job string, steps []step, disks []string) (map[string]string, error) {
	if err := os.WriteFile(filepath.Join(job, "job"), []byte(script(steps, r.tests)), 0o644); err != nil {
		return nil, err
	}
	r.log("%s: booting %s", release.kernel, system.version)
	g := guest{
		system: system, arch: r.arch, dir: dir, job: job, pools: disks, accel: r.accel, memory: guestMemory, limit: r.limit,
		log: func(format string, args ...any) { r.log(release.kernel+": "+format, args...) },
	}
	return g.run(ctx)
}

// exchange has each kernel read the pools that the others have written.
func (r *run) exchange(ctx context.Context, all []*result, job string) error {
	for _, reader := range all {
		if reader.release.refuses {
			continue
		}
		if err := r.read(ctx, reader, all, job); err != nil {
			return fmt.Errorf("kernel %s: %w", reader.Kernel, err)
		}
	}
	return nil
}

// read boots a kernel with copies of the pools of the others.
func (r *run) read(ctx context.Context, reader *result, writers []*result, job string) (err error) {
	var steps []step
	var disks []string
	defer func() { err = errors.Join(err, remove(disks...)) }()
	for _, writer := range writers {
		if writer == reader || writer.pool == "" || !writer.Outcomes[writePool.name].ok() {
			continue
		}
		copied := filepath.Join(reader.dir, "pool-of-"+writer.Kernel+".img")
		steps = append(steps, readPool(writer.Kernel, 'd'+rune(len(disks))))
		disks = append(disks, copied)
		if _, err := debian.Output(exec.CommandContext(ctx, "cp", "--sparse=always", writer.pool, copied)); err != nil {
			return err
		}
	}
	if len(steps) == 0 {
		return nil
	}
	files, err := r.boot(ctx, reader.release, reader.system, reader.dir, job, steps, disks)
	if err != nil {
		return err
	}
	for name, o := range outcomes(steps, files) {
		reader.Outcomes[name] = o
	}
	return keepLogs(filepath.Join(reader.dir, "logs-of-pools"), files)
}

// onDisk is a command with a pool on a disk mounted.
func onDisk(disk, command string) string {
	const dir = "/tmp/node/state/pools/default"
	return fmt.Sprintf("mkdir -p %[1]s && mount -t btrfs %[2]s %[1]s && %[3]s; code=$?; cat /tmp/node/driver.log; umount %[1]s && rm -rf /tmp/node && exit $code", dir, disk, command)
}

var writePool = step{"write", "", nil, "mkfs.btrfs -q -f /dev/vdd && " + onDisk("/dev/vdd", "/job/bin/pool-tool write /job/bin/btrfs-csi /tmp/node"), false}

// poolOf returns the name of a step, which is part of the names of files.
func poolOf(writer string) string { return "pool-of-" + writer }

func readPool(writer string, disk rune) step {
	return step{poolOf(writer), "", nil, onDisk("/dev/vd"+string(disk), "/job/bin/pool-tool read /job/bin/btrfs-csi /tmp/node"), false}
}

func (r *run) commit(ctx context.Context) string {
	out, err := debian.Output(exec.CommandContext(ctx, "git", "-C", r.source, "-c", "safe.directory=*", "rev-parse", "--short", "HEAD"))
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(out)
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return strings.TrimPrefix(line, "mkfs.btrfs, part of ")
}

// keepLogs writes what a guest has left into a directory, for people.
func keepLogs(dir string, files map[string]string) error {
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
