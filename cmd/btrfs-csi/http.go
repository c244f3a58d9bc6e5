package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// adminSocket is where check reaches the running driver, in the state directory.
const adminSocket = "admin.sock"

// errNoDriver is returned where no driver runs on a state directory.
var errNoDriver = errors.New("no driver is running")

// httpHandler serves what is asked over the network. Nothing of it changes
// anything.
func httpHandler(m *metrics, ready func() bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready() {
			http.Error(w, "pools are being reconciled", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", m.handler())
	return mux
}

// serveHTTP serves handler until ctx ends; a failure later ends ctx.
func serveHTTP(ctx context.Context, cancel context.CancelCauseFunc, address string, handler http.Handler) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("--http: %w", err)
	}
	serveListener(ctx, cancel, listener, handler)
	return nil
}

func serveListener(ctx context.Context, cancel context.CancelCauseFunc, listener net.Listener, handler http.Handler) {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			cancel(fmt.Errorf("serve %s: %w", listener.Addr(), err))
		}
	}()
	context.AfterFunc(ctx, func() { _ = server.Close() })
}

// serveAdmin lets check ask this driver for its plan, and for a repair. Who
// holds the lock of the state directory owns the socket.
func serveAdmin(ctx context.Context, cancel context.CancelCauseFunc, stateDir string, e *snapshot.Engine) error {
	path := filepath.Join(stateDir, adminSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// The state directory is 0700: nobody reaches the socket before the chmod.
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(err, listener.Close())
	}
	answer := func(find func(context.Context) ([]snapshot.Finding, error)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			findings, err := find(r.Context())
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			if err := json.NewEncoder(w).Encode(nonNil(findings)); err != nil {
				klog.FromContext(ctx).V(2).Info("Answer not sent", "error", err)
			}
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /check", answer(e.Plan))
	mux.HandleFunc("POST /repair", answer(e.Reconcile))
	serveListener(ctx, cancel, listener, mux)
	return nil
}

// askDriver gets the plan, or what a repair did, from the running driver;
// errNoDriver if there is none.
func askDriver(ctx context.Context, stateDir string, repair bool) ([]snapshot.Finding, error) {
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(stateDir, adminSocket))
	}}}
	method, path := http.MethodGet, "/check"
	if repair {
		method, path = http.MethodPost, "/repair"
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://driver"+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, errNoDriver
	}
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the driver answered: %s", bytes.TrimSpace(body))
	}
	var findings []snapshot.Finding
	err = json.Unmarshal(body, &findings)
	return findings, err
}
