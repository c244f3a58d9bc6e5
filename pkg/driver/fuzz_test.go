package driver

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"hash/fnv"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs"
	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/pkg/meta/index"
	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// FuzzRequestBytes sends one request of each served type that the bytes can be decoded as.
// The node has a volume, a snapshot and a mount.
func FuzzRequestBytes(f *testing.F) {
	r := newFuzzRig(f)
	for _, call := range r.calls {
		for _, b := range []builder{{}, {all: true}} {
			request, err := proto.Marshal(b.request(call))
			must0(f, err)
			f.Add(call.name, request)
		}
	}
	request, err := proto.Marshal(&csi.ControllerExpandVolumeRequest{VolumeId: "pvc-1", CapacityRange: sized(100*mib + 1)}) // is rounded up
	must0(f, err)
	f.Add("ControllerExpandVolume", request)
	for _, path := range fuzzPaths {
		for _, request := range []proto.Message{
			&csi.NodeStageVolumeRequest{VolumeId: "pvc-1", StagingTargetPath: path, VolumeCapability: writer()},
			&csi.NodePublishVolumeRequest{VolumeId: "pvc-1", StagingTargetPath: fuzzPaths[0], TargetPath: path, VolumeCapability: writer()},
			&csi.NodeUnpublishVolumeRequest{VolumeId: "pvc-1", TargetPath: path},
		} {
			data, err := proto.Marshal(request)
			must0(f, err)
			f.Add(strings.TrimSuffix(string(request.ProtoReflect().Descriptor().Name()), "Request"), data)
		}
	}
	f.Fuzz(func(t *testing.T, method string, data []byte) {
		call := r.call(method)
		request := call.input.New().Interface()
		if proto.Unmarshal(data, request) != nil {
			t.Skip("gRPC refuses it")
		}
		r.begin(t)
		r.send(call, request)
		r.end()
	})
}

// FuzzRequests sends sequences of nearly valid requests, with retries and faults of the
// pool.
func FuzzRequests(f *testing.F) {
	r := newFuzzRig(f)
	for i := range r.calls {
		f.Add([]byte{opCall, byte(i)})
		f.Add(append([]byte{opNest, opCall, byte(i)}, bytes.Repeat([]byte{0xe5, 0x11, 0xf3, 7}, 20)...))
	}
	for _, method := range []string{"CreateVolume", "CreateSnapshot", "ControllerExpandVolume", "DeleteSnapshot"} {
		for step := range byte(10) { // the first call fails at step, the second continues
			f.Add(slices.Concat([]byte{opFault, step, 0, step}, r.sequence(method), []byte{opRepeat}))
		}
	}
	random := rand.NewChaCha8([32]byte{})
	for range 30 {
		data := make([]byte, 300)
		_, _ = random.Read(data)
		f.Add(data)
	}
	f.Add(slices.Concat([]byte{opNest}, r.sequence("CreateSnapshot"))) // refused after it has started
	f.Add(r.sequence("NodePublishVolume", "NodeUnpublishVolume", "NodeUnstageVolume", "DeleteVolume", "CreateSnapshot", "DeleteSnapshot"))
	f.Add(r.sequence("CreateVolume", "CreateSnapshot", "ControllerExpandVolume", "NodeGetVolumeStats", "ListSnapshots", "DeleteSnapshot", "ListVolumes"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r.begin(t)
		b := builder{rest: data}
		for range mostCalls {
			if len(b.rest) == 0 {
				break
			}
			r.step(&b)
		}
		r.end()
	})
}

// sequence returns the input for valid calls of these methods.
func (r *fuzzRig) sequence(methods ...string) (data []byte) {
	for _, method := range methods {
		zeros := builder{rest: make([]byte, 1<<10)}
		index := slices.IndexFunc(r.calls, func(call rpc) bool { return call.name == method })
		zeros.request(r.calls[index])
		data = append(append(data, opCall, byte(index)), make([]byte, 1<<10-len(zeros.rest))...)
	}
	return data
}

const (
	mostCalls = 12
	// callTimeout is longer than any call takes.
	callTimeout = btrfstest.Patience
	// secret is part of every secret value that is sent, and of nothing else.
	secret = "hunter2-is-not-to-be-leaked"
	// fuzzPool is the ID of the pool.
	fuzzPool = "0b5c1b54-0000-4000-8000-00000000000a"
)

// The operations of FuzzRequests. Other numbers are calls, too.
const (
	opCall = iota
	opRepeat
	opFault
	opReadOnly
	opNest
	ops = 16
)

// rpc is one served method.
type rpc struct {
	name, path    string
	input, output protoreflect.MessageType
}

// fuzzRig is a driver on a real socket, over an engine and a pool in memory. The volumes
// are directories of a real btrfs, so that they can be mounted. This btrfs also contains
// the kubelet's directory and a canary that must not change.
type fuzzRig struct {
	base, kubelet, canary, state string

	driver     *Driver
	connection *grpc.ClientConn
	calls      []rpc
	logged     journal

	// State of one run.
	t        *testing.T
	engine   *snapshot.Engine
	pool     *pooltest.Filesystem
	faulty   bool // the pool may make calls fail
	last     rpc
	repeated proto.Message
	before   string // listing at the start of the run
}

func newFuzzRig(f *testing.F) *fuzzRig {
	f.Helper()
	base, err := filepath.EvalSymlinks(btrfstest.Mount(f))
	must0(f, err)
	r := &fuzzRig{base: base, kubelet: filepath.Join(base, "kubelet"), canary: filepath.Join(base, "canary"), state: filepath.Join(base, "state")}
	must0(f, os.MkdirAll(filepath.Join(r.canary, "empty", "mount"), 0o700))
	must0(f, os.WriteFile(filepath.Join(r.canary, "file"), []byte("precious"), 0o600))
	r.driver, err = New(nil, Options{NodeID: "node-1", Version: "v1", KubeletDir: r.kubelet})
	must0(f, err)
	r.calls = callsOf(f, r.driver.Server(klog.Background()))
	r.logged.capture(f)
	r.listen(f)
	return r
}

// listen serves the driver and connects to it.
func (r *fuzzRig) listen(f *testing.F) {
	socket := filepath.Join(f.TempDir(), "csi.sock")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.driver.Serve(ctx, socket) }()
	f.Cleanup(func() { cancel(); must0(f, <-ended) })
	for deadline := time.Now().Add(callTimeout); !r.driver.Serving(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			f.Fatal("not served")
		}
	}
	var err error
	r.connection, err = grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must0(f, err)
	f.Cleanup(func() { _ = r.connection.Close() })
}

// callsOf returns all methods that a server serves.
func callsOf(f *testing.F, server *grpc.Server) (calls []rpc) {
	for service, info := range server.GetServiceInfo() {
		found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
		must0(f, err)
		for _, m := range info.Methods {
			method := found.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(m.Name))
			input, err := protoregistry.GlobalTypes.FindMessageByName(method.Input().FullName())
			must0(f, err)
			output, err := protoregistry.GlobalTypes.FindMessageByName(method.Output().FullName())
			must0(f, err)
			calls = append(calls, rpc{m.Name, "/" + service + "/" + m.Name, input, output})
		}
	}
	slices.SortFunc(calls, func(a, b rpc) int { return strings.Compare(a.path, b.path) })
	return calls
}

// call returns the method with a name, or some method for any other text.
func (r *fuzzRig) call(name string) rpc {
	for _, call := range r.calls {
		if call.name == name {
			return call
		}
	}
	h := fnv.New32()
	_, _ = h.Write([]byte(name))
	return r.calls[h.Sum32()%uint32(len(r.calls))]
}

// begin creates the node of one run: volume pvc-1, staged, with a snapshot, and volume
// pvc-2, read-only.
func (r *fuzzRig) begin(t *testing.T) {
	t.Helper()
	r.t, r.faulty, r.repeated = t, false, nil
	t.Cleanup(func() { unmountBelow(t, r.kubelet) })
	for _, dir := range []string{r.state, r.kubelet} {
		must(t, os.RemoveAll(dir))
	}
	for _, dir := range []string{"plugins/pvc-1/globalmount", "plugins/pvc-2/globalmount", "pods/pod-1/pvc-1", "pods/other/data"} {
		mkdir(t, filepath.Join(r.kubelet, dir))
	}
	write(t, filepath.Join(r.kubelet, "pods/other/file"), "precious")
	write(t, filepath.Join(r.kubelet, "pods/other/data/file"), "precious") // not an empty target, which could be removed
	must(t, os.Symlink(r.canary, filepath.Join(r.kubelet, "pods/link")))
	host := placedHost{pooltest.NewHost(btrfs.QuotaFull), r.state}
	r.pool = host.Pool(pool.Default)
	r.pool.ID = fuzzPool
	index, _, err := index.Open(filepath.Join(t.TempDir(), "index.db"))
	must(t, err)
	r.engine, err = snapshot.Open(t.Context(), host, index, snapshot.Patience(time.Minute))
	must(t, err)
	t.Cleanup(func() { must(t, r.engine.Close()) })
	r.driver.engine = r.engine
	r.populate()
	r.before = r.listing()
	r.logged.reset()
}

func (r *fuzzRig) populate() {
	ctx := r.t.Context()
	_, err := r.engine.Prepare(ctx, snapshot.Spec{Name: "pvc-1", Size: snapshot.Range{Required: 100 * mib}}, meta.Ref{})
	must(r.t, err)
	_, err = r.engine.Commit(ctx, snapshot.Spec{Name: "snap-1"}, "pvc-1")
	must(r.t, err)
	_, err = r.engine.View(ctx, snapshot.Spec{Name: "pvc-2"}, meta.Snapshot("snap-1"))
	must(r.t, err)
	_, err = csi.NewNodeClient(r.connection).NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: "pvc-1", StagingTargetPath: filepath.Join(r.kubelet, "plugins/pvc-1/globalmount"), VolumeCapability: writer(),
	})
	must(r.t, err)
}

// step runs the operation of the next bytes.
func (r *fuzzRig) step(b *builder) {
	switch b.byte() % ops {
	case opRepeat:
		if r.repeated != nil {
			r.send(r.last, r.repeated)
		}
	case opFault:
		first, count := 1+int(b.byte()%10), int(b.byte()%3)
		errs := []error{unix.ENOSPC, unix.EIO, unix.EDQUOT, unix.EROFS, unix.ENOMEM}
		r.pool.FailAt(first, first+count, errs[int(b.byte())%len(errs)])
		r.faulty = true
	case opReadOnly:
		r.pool.SetReadOnly(b.byte()%2 == 0)
		r.faulty = true
	case opNest:
		_ = r.pool.Nest(pool.Slot{Area: pool.Area(meta.Active), Name: "pvc-1"}, "nested") // if pvc-1 exists
	default:
		call := r.calls[int(b.byte())%len(r.calls)]
		r.send(call, b.request(call))
	}
}

// send makes one call and checks the promises of every call.
func (r *fuzzRig) send(call rpc, request proto.Message) {
	r.t.Helper()
	poison(request.ProtoReflect())
	r.localise(request.ProtoReflect())
	r.last, r.repeated = call, request
	ctx, cancel := context.WithTimeout(r.t.Context(), callTimeout)
	defer cancel()
	response := call.output.New().Interface()
	err := r.connection.Invoke(ctx, call.path, request, response)
	answered := status.Convert(err).Message() + prototext.Format(response)
	if strings.Contains(answered, secret) {
		r.t.Errorf("%s leaks a secret: %v, %v", call.name, err, response)
	}
	if !r.mayAnswer(call.name, status.Code(err)) {
		r.t.Errorf("%s: code %s is not one of its own: %v\n%s", call.name, status.Code(err), err, prototext.Format(request))
	}
	if err == nil {
		r.promised(request, response)
	}
}

// specCodes lists the codes that CSI allows for a method beside INVALID_ARGUMENT, and codes
// that this driver adds: FAILED_PRECONDITION for nested subvolumes and obstacles to a
// mount, RESOURCE_EXHAUSTED for a full pool. A method that is not listed returns only
// INVALID_ARGUMENT.
var specCodes = map[string][]codes.Code{
	"CreateVolume":               {codes.NotFound, codes.AlreadyExists, codes.OutOfRange, codes.ResourceExhausted, codes.FailedPrecondition},
	"DeleteVolume":               {codes.FailedPrecondition},
	"ValidateVolumeCapabilities": {codes.NotFound},
	"ListVolumes":                {codes.Aborted}, // for an invalid starting token
	"ControllerGetVolume":        {codes.NotFound},
	"ControllerGetVolumeHealth":  {codes.NotFound},
	"CreateSnapshot":             {codes.NotFound, codes.AlreadyExists, codes.ResourceExhausted, codes.FailedPrecondition},
	"ListSnapshots":              {codes.Aborted},
	"GetSnapshot":                {codes.NotFound},
	"CreateVolumeGroupSnapshot":  {codes.NotFound, codes.AlreadyExists, codes.ResourceExhausted, codes.FailedPrecondition},
	"GetVolumeGroupSnapshot":     {codes.NotFound, codes.FailedPrecondition},
	"DeleteVolumeGroupSnapshot":  {codes.FailedPrecondition},
	"ControllerExpandVolume":     {codes.NotFound, codes.OutOfRange, codes.ResourceExhausted},
	"NodeStageVolume":            {codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition},
	"NodeUnstageVolume":          {codes.FailedPrecondition},
	"NodePublishVolume":          {codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition},
	"NodeUnpublishVolume":        {codes.FailedPrecondition},
	"NodeGetVolumeStats":         {codes.NotFound},
	"NodeGetVolumeHealth":        {codes.NotFound},
	"NodeExpandVolume":           {codes.NotFound, codes.OutOfRange, codes.ResourceExhausted},
}

// unserved lists the methods that no capability of the driver promises.
var unserved = []string{"ControllerPublishVolume", "ControllerUnpublishVolume", "ControllerModifyVolume", "ControllerListVolumeHealth"}

// faultCodes lists the codes that any method may return while the pool fails.
var faultCodes = []codes.Code{codes.Aborted, codes.Unavailable, codes.ResourceExhausted}

func (r *fuzzRig) mayAnswer(method string, code codes.Code) bool {
	switch {
	case slices.Contains(unserved, method):
		return code == codes.Unimplemented
	case code == codes.OK, code == codes.InvalidArgument, slices.Contains(specCodes[method], code):
		return true
	}
	return r.faulty && slices.Contains(faultCodes, code)
}

// promised checks whether a successful response is true.
func (r *fuzzRig) promised(request, response proto.Message) {
	r.t.Helper()
	has := func(ref meta.Ref, want bool) {
		r.t.Helper()
		if _, err := r.engine.Stat(r.t.Context(), ref); (err == nil) != want {
			r.t.Errorf("%s: acknowledged, and now it is there: %v, %v", ref, err == nil, err)
		}
	}
	fits := func(size int64, want *csi.CapacityRange) {
		r.t.Helper()
		if size < want.GetRequiredBytes() || want.GetLimitBytes() > 0 && size > want.GetLimitBytes() || size <= 0 {
			r.t.Errorf("got %d bytes for %v", size, want)
		}
	}
	switch a := response.(type) {
	case *csi.CreateVolumeResponse:
		has(meta.Volume(a.GetVolume().GetVolumeId()), true)
		fits(a.GetVolume().GetCapacityBytes(), request.(*csi.CreateVolumeRequest).GetCapacityRange())
	case *csi.CreateSnapshotResponse:
		has(meta.Snapshot(a.GetSnapshot().GetSnapshotId()), true)
	case *csi.DeleteVolumeResponse:
		has(meta.Volume(request.(*csi.DeleteVolumeRequest).GetVolumeId()), false)
	case *csi.DeleteSnapshotResponse:
		has(meta.Snapshot(request.(*csi.DeleteSnapshotRequest).GetSnapshotId()), false)
	case *csi.ControllerExpandVolumeResponse:
		fits(a.GetCapacityBytes(), request.(*csi.ControllerExpandVolumeRequest).GetCapacityRange())
	case *csi.NodeExpandVolumeResponse:
		fits(a.GetCapacityBytes(), request.(*csi.NodeExpandVolumeRequest).GetCapacityRange())
	}
}

// end checks the state after a run.
func (r *fuzzRig) end() {
	r.t.Helper()
	if r.faulty {
		r.pool.Kill() // also ends faults
		r.pool.SetReadOnly(false)
		_, err := r.engine.Reconcile(r.t.Context())
		must(r.t, err)
	}
	if plan, err := r.engine.Plan(r.t.Context()); err != nil || len(plan) > 0 {
		r.t.Errorf("half made: %v, %v", plan, err)
	}
	text := r.logged.String()
	if strings.Contains(text, secret) || strings.Contains(text, "Panic") || !strings.Contains(text, "RPC") && r.repeated != nil {
		r.t.Errorf("in the log a secret, a panic, or nothing:\n%s", text)
	}
	r.checkMounts()
	r.checkVolumes()
	unmountBelow(r.t, r.kubelet)
	if after := r.listing(); after != r.before {
		r.t.Errorf("touched what is none of the driver's: wanted\n%s\ngot\n%s", r.before, after)
	}
}

// checkMounts fails the test for a mount that is no volume's, or outside of the kubelet's
// targets.
func (r *fuzzRig) checkMounts() {
	r.t.Helper()
	for _, m := range mountTable(r.t) {
		if _, is := volumeOfMount(m, 0); strings.HasPrefix(m.Point, r.base+"/") && (!strings.HasPrefix(m.Point, r.kubelet+"/") || !is) {
			r.t.Errorf("%s is mounted at %q", m, m.Point)
		}
	}
}

// checkVolumes fails the test for a volume without its file.
func (r *fuzzRig) checkVolumes() {
	r.t.Helper()
	for _, class := range []meta.Class{meta.Volumes, meta.Snapshots} {
		must(r.t, r.engine.Walk(r.t.Context(), class, "", func(e meta.Entry) bool {
			wantFile(r.t, filepath.Join(r.state, e.Pool, string(e.Kind), e.ID, "fs", "data"), "precious")
			return true
		}))
	}
}

// listing lists everything that the driver must not change.
func (r *fuzzRig) listing() string {
	r.t.Helper()
	var text strings.Builder
	top, err := os.ReadDir(r.base)
	must(r.t, err)
	fmt.Fprintln(&text, top)
	for _, dir := range []string{r.canary, filepath.Join(r.kubelet, "pods/other"), filepath.Join(r.kubelet, "pods/link")} {
		must(r.t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			must(r.t, err)
			info, err := d.Info()
			must(r.t, err)
			fmt.Fprintln(&text, path, info.Mode(), info.Size(), info.ModTime().UnixNano())
			return nil
		}))
	}
	return text.String()
}

// placedHost gives each volume of a host in memory a directory that can be mounted, with a
// file in it.
type placedHost struct {
	*pooltest.Host
	dir string
}

func (h placedHost) Open(ctx context.Context, name string) (pool.Filesystem, error) {
	f, err := h.Host.Open(ctx, name)
	return placed{f, place(filepath.Join(h.dir, name))}, err
}

// place is the directory of a pool.
type place string

func (p place) slot(s pool.Slot) string     { return filepath.Join(string(p), string(s.Area), s.Name) }
func (p place) SlotPath(s pool.Slot) string { return filepath.Join(p.slot(s), "fs") }

type placed struct {
	pool.Filesystem
	place
}

func (p placed) SlotPath(s pool.Slot) string { return p.place.SlotPath(s) }

func (p placed) Open() (pool.Directory, error) {
	d, err := p.Filesystem.Open()
	return placedDirectory{d, p.place}, err
}

type placedDirectory struct {
	pool.Directory
	place
}

func (p place) put(s pool.Slot) error {
	if err := os.MkdirAll(p.SlotPath(s), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(p.SlotPath(s), "data"), []byte("precious"), 0o600)
}

func (p placedDirectory) Create(s pool.Slot) (btrfs.SubvolumeInfo, error) {
	info, err := p.Directory.Create(s)
	if err == nil {
		err = p.put(s)
	}
	return info, err
}

func (p placedDirectory) Snapshot(from, to pool.Slot, readOnly bool) (btrfs.SubvolumeInfo, error) {
	info, err := p.Directory.Snapshot(from, to, readOnly)
	if err == nil {
		err = p.put(to)
	}
	return info, err
}

func (p placedDirectory) Destroy(s pool.Slot) error {
	if err := p.Directory.Destroy(s); err != nil {
		return err
	}
	return os.RemoveAll(p.slot(s))
}

func (p placedDirectory) Move(from, to pool.Slot) error {
	if err := p.Directory.Move(from, to); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(p.slot(to)), 0o700); err != nil {
		return err
	}
	if err := os.Rename(p.slot(from), p.slot(to)); !os.IsNotExist(err) { // an absent slot has no directory
		return err
	}
	return nil
}

// localise replaces paths in a request that begin with /kubelet, /canary or /state by those
// of this rig.
func (r *fuzzRig) localise(m protoreflect.Message) {
	for i := range m.Descriptor().Fields().Len() {
		field := m.Descriptor().Fields().Get(i)
		if path := m.Get(field); strings.HasSuffix(string(field.Name()), "_path") && !strings.HasPrefix(path.String(), r.base) {
			m.Set(field, protoreflect.ValueOfString(placeholder.ReplaceAllString(path.String(), r.base+"$0")))
		}
	}
}

// placeholder matches the names of a rig's directories.
var placeholder = regexp.MustCompile(`^/(kubelet|canary|state)\b`)

// poison puts the secret into every secret field of a request. It adds one where there is
// none.
func poison(m protoreflect.Message) {
	for i := range m.Descriptor().Fields().Len() {
		field := m.Descriptor().Fields().Get(i)
		if proto.GetExtension(field.Options(), csi.E_CsiSecret).(bool) {
			poisonMap(m.Mutable(field).Map())
		}
	}
}

func poisonMap(secrets protoreflect.Map) {
	secrets.Set(protoreflect.ValueOfString("password").MapKey(), protoreflect.ValueOfString(""))
	var keys []protoreflect.MapKey
	secrets.Range(func(key protoreflect.MapKey, _ protoreflect.Value) bool { keys = append(keys, key); return true })
	for i, key := range keys {
		secrets.Set(key, protoreflect.ValueOfString(fmt.Sprint(secret, i)))
	}
}

// builder makes nearly valid requests. The bytes of the fuzzer select what to change.
// Without bytes a request is valid.
type builder struct {
	rest []byte
	all  bool // set every field
}

func (b *builder) byte() byte {
	if len(b.rest) == 0 {
		return 0
	}
	first := b.rest[0]
	b.rest = b.rest[1:]
	return first
}

// text returns any text from the fuzzer.
func (b *builder) text() string {
	n := min(int(b.byte()%64), len(b.rest))
	text := strings.ToValidUTF8(string(b.rest[:n]), "\ufffd")
	b.rest = b.rest[n:]
	return text
}

func (b *builder) number() int64 {
	var bytes [8]byte
	for i := range bytes {
		bytes[i] = b.byte()
	}
	return int64(binary.LittleEndian.Uint64(bytes[:]))
}

func (b *builder) request(call rpc) proto.Message {
	m := call.input.New()
	b.fill(m)
	return m.Interface()
}

// seldom lists the fields that a usual request does not set.
var seldom = []string{
	"volume_content_source", "accessibility_requirements", "accessible_topology", "mutable_parameters", "parameters", "limit_bytes",
	"starting_token", "max_entries", "volume_mount_group", "volume_context", "publish_context", "readonly", "block", "mount_flags",
}

func (b *builder) fill(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		unusual := b.byte() >= 0xf0
		if !b.all && slices.Contains(seldom, string(field.Name())) != unusual {
			continue
		}
		switch {
		case field.IsMap():
			b.fillMap(string(field.Name()), m.Mutable(field).Map())
		case field.IsList():
			for list := m.Mutable(field).List(); ; {
				list.Append(b.value(field, list.NewElement))
				if b.byte() < 0xc0 {
					break
				}
			}
		default:
			m.Set(field, b.value(field, func() protoreflect.Value { return m.NewField(field) }))
		}
	}
}

func (b *builder) fillMap(name string, to protoreflect.Map) {
	for w := mapWords[name]; ; {
		to.Set(protoreflect.ValueOfString(b.choose(w.keys)).MapKey(), protoreflect.ValueOfString(b.choose(w.values)))
		if b.byte() < 0x60 {
			return
		}
	}
}

// mapWords lists keys and values of maps, the usual ones first.
var mapWords = map[string]struct{ keys, values []string }{
	"parameters": {
		[]string{paramPool, paramCompression, paramNoDataCow, paramNestedSubvolumes, sidecarPrefix + "pvc/name", sidecarPrefix + "other"},
		[]string{"default", "true", "zstd:3", "skip", "none", "zstd:16", "false", "other", ""},
	},
	"volume_context": {[]string{contextPoolID, "csi.storage.k8s.io/ephemeral"}, []string{fuzzPool, "true", ""}},
	"segments":       {[]string{TopologyPrefix + fuzzPool, "kubernetes.io/hostname"}, []string{"true", "false", "node-1"}},
	"secrets":        {[]string{"password"}, nil},
}

// choose returns the first word usually, another one sometimes, and seldom any text.
func (b *builder) choose(words []string) string {
	n := b.byte()
	switch {
	case n >= 0xf0 || len(words) == 0:
		return b.text()
	case n < 0x80:
		return words[0]
	}
	return words[int(n)%len(words)]
}

func (b *builder) value(field protoreflect.FieldDescriptor, empty func() protoreflect.Value) protoreflect.Value {
	switch field.Kind() {
	case protoreflect.MessageKind:
		v := empty()
		b.fill(v.Message())
		return v
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(b.choose(words(string(field.Name()))))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(b.byte()%2 == 0)
	case protoreflect.EnumKind:
		n := protoreflect.EnumNumber(b.byte())
		return protoreflect.ValueOfEnum(1 + n%16*(n>>7)) // the first value in half of the cases
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32([]int32{1, 2, 0, -1, math.MinInt32, math.MaxInt32}[int(b.byte())%6])
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(b.size())
	}
	return empty()
}

func (b *builder) size() int64 {
	sizes := []int64{100 * mib, 0, 1, -1, mib - 1, mib, mib + 1, 100*mib + 1, 99 << 30, 101 << 30, 1 << 50, math.MaxInt64 - 1, math.MaxInt64, math.MinInt64}
	switch n := int(b.byte()); {
	case n >= 0xf0:
		return b.number()
	case n < 0x80:
		return sizes[0]
	default:
		return sizes[n%len(sizes)]
	}
}

// words returns texts for a field, the usual one first.
func words(field string) []string {
	ids := []string{"pvc-1", "pvc-2", "pvc-3", "snap-1", meta.ID("a/b"), "absent", "../active/pvc-1", "", ".", strings.Repeat("n", 300)}
	switch field {
	case "name":
		return []string{"pvc-3", "pvc-1", "snap-1", "a/b", "../../canary/x", "卷", "", "\x00", "a\nb", strings.Repeat("n", 128), strings.Repeat("n", 129)}
	case "volume_id", "source_volume_id":
		return ids
	case "snapshot_id":
		return append([]string{"snap-1", "pvc-3"}, ids...)
	case "staging_target_path", "volume_path":
		return fuzzPaths
	case "target_path":
		return append([]string{"/kubelet/pods/pod-1/pvc-1/mount"}, fuzzPaths...)
	case "fs_type":
		return []string{"btrfs", "", "ext4"}
	case "mount_flags":
		return append([]string{"nosuid"}, append(mount.FlagNames(), "bind", "remount,suid", "compress=zstd")...)
	case "starting_token":
		return []string{tokenAfter("pvc-1"), "", "x", tokenAfter("../x")}
	}
	return nil
}

// fuzzPaths lists target paths. Most are invalid.
var fuzzPaths = []string{
	"/kubelet/plugins/pvc-1/globalmount", "/kubelet/plugins/pvc-2/globalmount", "/kubelet/pods/pod-1/pvc-1/mount", "/kubelet/pods/pod-1/pvc-1",
	"/kubelet/pods/pod-2/pvc-1/mount", "/kubelet/pods/pod-1/pvc-1/a b\\040\n", "/kubelet/plugins/pvc-1/globalmount/inside", "/kubelet/plugins/pvc-1/globalmount/data",
	"/kubelet/pods/link", "/kubelet/pods/link/empty", "/kubelet/pods/link/empty/mount", "/kubelet/pods/other", "/kubelet/pods/other/data", "/kubelet/pods/other/file",
	"/kubelet/../canary/empty/mount", "/canary/empty/mount", "/kubelet", "/kubelet/", "/kubelet/.", "/", "", "pods", "/state/default/active/pvc-1/fs",
	"/kubelet/pods/pod-1/pvc-1/\x00", "/kubelet/pods/pod-1/pvc-1/" + strings.Repeat("n", 300), "/kubelet/" + strings.Repeat("n/", 2500) + "n", "/proc/self/root/etc",
}

// journal collects the output of klog at the highest verbosity.
type journal struct {
	mu   sync.Mutex // protects text
	text bytes.Buffer
}

func (j *journal) capture(f *testing.F) {
	before := klog.CaptureState()
	f.Cleanup(before.Restore)
	flags := flag.NewFlagSet("klog", flag.PanicOnError)
	klog.InitFlags(flags)
	for name, value := range map[string]string{"v": "10", "logtostderr": "false", "stderrthreshold": "FATAL", "one_output": "true"} {
		must0(f, flags.Set(name, value))
	}
	klog.SetOutput(j)
}

func (j *journal) Write(line []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(line)
}

func (j *journal) String() string {
	klog.Flush()
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

func (j *journal) reset() {
	klog.Flush()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.text.Reset()
}

func must0(f *testing.F, err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// FuzzParameters proves that accepted parameters keep their meaning.
func FuzzParameters(f *testing.F) {
	f.Add("pool", "default", "compression", "zstd:3")
	f.Add("nodatacow", "true", "compression", "none")
	f.Add("nodatacow", "true", "compression", "zlib:9")
	f.Add("nestedSubvolumes", "skip", sidecarPrefix+"pvc/name", "data")
	f.Fuzz(func(t *testing.T, key, value, otherKey, otherValue string) {
		params := map[string]string{key: value, otherKey: otherValue}
		o, err := volumeParameters(params)
		if err != nil {
			if status.Code(err) != codes.InvalidArgument {
				t.Error(err)
			}
			return
		}
		if o.pool != params[paramPool] || o.parameters.Compression != params[paramCompression] ||
			o.parameters.NoDataCow != (params[paramNoDataCow] == "true") || o.parameters.SkipNested != (params[paramNestedSubvolumes] == "skip") {
			t.Errorf("%q: read as %+v", params, o)
		}
		if o.pool != "" && (!filepath.IsLocal(o.pool) || filepath.Base(o.pool) != o.pool) {
			t.Errorf("pool %q is no directory", o.pool)
		}
		if o.parameters.NoDataCow && strings.HasPrefix(o.parameters.Compression, "z") {
			t.Errorf("%q: cannot be had together", params)
		}
		for name := range o.labels {
			if params[sidecarPrefix+name] != o.labels[name] {
				t.Errorf("%q: has the label %q", params, name)
			}
		}
	})
}

// FuzzToken proves that a token contains a valid ID or is refused.
func FuzzToken(f *testing.F) {
	for _, token := range []string{"", tokenAfter("pvc-1"), tokenAfter("../x"), tokenAfter(""), "x", tokenAfter("pvc-1") + "\n"} {
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		after, err := readToken(token)
		if err != nil && status.Code(err) != codes.Aborted || err == nil && token != "" && !meta.ValidID(after) {
			t.Errorf("%q: got %q, %v", token, after, err)
		}
		if again, err := readToken(tokenAfter(meta.ID(token))); err != nil || again != meta.ID(token) {
			t.Errorf("%q: got %q, %v", meta.ID(token), again, err)
		}
	})
}

// FuzzPoolIdentity proves that a pool has the ID in its file, which is valid in a topology
// key, or is refused. The file never changes.
func FuzzPoolIdentity(f *testing.F) {
	new(journal).capture(f)
	state := btrfstest.Mount(f)
	file := filepath.Join(state, "pools", pool.Default, "pool.json")
	must0(f, os.MkdirAll(filepath.Dir(file), 0o700))
	for _, text := range []string{
		`{"version":1,"id":"` + fuzzPool + `"}`, `{"version":2,"id":"` + fuzzPool + `"}`, `{"version":1,"id":"{` + fuzzPool + `}"}`,
		`{"version":1,"id":"urn:uuid:` + fuzzPool + `"}`, `{"version":1,"id":""}`, `{"version":-1}`, "{}", "", "null", "\x00\xff", `{"version":1`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		must(t, os.WriteFile(file, data, 0o600))
		engine, err := snapshot.Inspect(t.Context(), state)
		must(t, err)
		pools := engine.Pools(t.Context())
		must(t, engine.Close())
		if len(pools) != 1 || (pools[0].ID == "") == (pools[0].Error == "") {
			t.Fatalf("%q: got %+v", data, pools)
		}
		if id := pools[0].ID; id != "" && (!bytes.Contains(data, []byte(id)) || len(validation.IsQualifiedName(TopologyPrefix+id)) > 0) {
			t.Errorf("%q: is pool %q", data, id)
		}
		wantFile(t, file, string(data))
	})
}
