package driver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/btrfs-csi/btrfs-csi/internal/unixsocket"
)

// registrations is the directory of plugin sockets in the kubelet's directory.
const registrations = "plugins_registry"

// retryRegistration is the delay before another registration after a refusal.
const retryRegistration = 10 * time.Second

// registrar serves the kubelet's plugin registration (pluginregistration v1).
type registrar struct {
	registration.UnimplementedRegistrationServer
	logger  klog.Logger
	socket  string        // the CSI socket
	refused chan struct{} // receives after a refusal by the kubelet
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: Name, Endpoint: r.socket, SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus receives the result of the registration from the kubelet.
func (r *registrar) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if status.GetPluginRegistered() {
		r.logger.Info("Registered with the kubelet")
	} else {
		r.logger.Error(errors.New(status.GetError()), "The kubelet refused the driver")
		select {
		case r.refused <- struct{}{}:
		default:
		}
	}
	return &registration.RegistrationStatusResponse{}, nil
}

// register registers the CSI socket with the kubelet until unregister is called, if
// Options.Register is set. Then the kubelet forgets the driver. Mounts stay.
func (d *Driver) register(ctx context.Context, socket string) (unregister func(), err error) {
	if !d.options.Register {
		return func() {}, nil
	}
	path := filepath.Join(d.options.KubeletDir, registrations, Name+"-reg.sock")
	r := &registrar{logger: klog.FromContext(ctx), socket: socket, refused: make(chan struct{}, 1)}
	withdraw, err := r.offer(path)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { withdraw() }()
		for r.wait(ctx) {
			withdraw()
			if withdraw, err = r.offer(path); err != nil {
				r.logger.Error(err, "Not registered with the kubelet")
				withdraw = func() {}
				r.refused <- struct{}{}
			}
		}
	}()
	return func() { cancel(); <-done }, nil
}

// wait returns true when the driver should register again. Kubelets before 1.35 do not
// retry after a failure, for example of the API server.
func (r *registrar) wait(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-r.refused:
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(retryRegistration):
		return true
	}
}

// offer serves the registration socket.
func (r *registrar) offer(path string) (withdraw func(), err error) {
	listener, err := unixsocket.Listen(path, 0)
	if err != nil {
		return nil, fmt.Errorf("register with the kubelet at %s: %w", path, err)
	}
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, r)
	go func() { _ = server.Serve(listener.Listener) }()
	return func() {
		_ = listener.Close()
		server.Stop()
	}, nil
}
