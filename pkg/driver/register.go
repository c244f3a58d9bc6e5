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

// registrations is where a kubelet looks for plugins, in its directory.
const registrations = "plugins_registry"

// retryRegistration is how long after a refusal the driver is offered again.
const retryRegistration = 10 * time.Second

// registrar answers the kubelet, which finds its socket and asks what is behind
// it (pluginregistration v1).
type registrar struct {
	registration.UnimplementedRegistrationServer
	logger  klog.Logger
	socket  string        // of CSI
	refused chan struct{} // receives when the kubelet refused the driver
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: Name, Endpoint: r.socket, SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus receives the outcome of the registration from the kubelet.
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

// register offers the CSI socket to the kubelet, if that is asked for, until
// unregister is called, by which the kubelet forgets the driver. What is mounted
// stays mounted.
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

// wait returns true when it is time to offer the driver again: kubelets before
// 1.35 do not by themselves ask again after a failure, of the API server say.
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

// offer serves the socket that a kubelet looks for.
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
