package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/internal/unixsocket"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster"
	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/orphans"
	"github.com/btrfs-csi/btrfs-csi/pkg/snapshot"
)

// adminSocket is the socket of the running driver, in the state directory, for check,
// history and pools.
const adminSocket = "admin.sock"

// errNoDriver means that no driver runs on a state directory.
var errNoDriver = errors.New("no driver is running")

// httpHandler serves probes and metrics on the network. No request changes anything.
func httpHandler(m *metrics, ready func() error) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", m.handler())
	return mux
}

// serveHTTP serves handler until ctx ends. A later failure calls cancel.
func serveHTTP(ctx context.Context, cancel context.CancelCauseFunc, address string, handler http.Handler) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("--http: %w", err)
	}
	serveListener(ctx, cancel, &boundedListener{Listener: listener, most: mostConnections}, strictServer(handler))
	return nil
}

// strictServer is for anybody on the network. Timeouts end idle connections, slow requests and
// slow readers, and large headers are refused.
func strictServer(handler http.Handler) *http.Server {
	return &http.Server{
		Handler: handler, ReadTimeout: 10 * time.Second, WriteTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
	}
}

func serveListener(ctx context.Context, cancel context.CancelCauseFunc, listener net.Listener, server *http.Server) {
	server.ReadHeaderTimeout, server.IdleTimeout = 10*time.Second, time.Minute
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			cancel(fmt.Errorf("serve %s: %w", listener.Addr(), err))
		}
	}()
	context.AfterFunc(ctx, func() { _ = server.Close() })
}

// serveAdmin serves check, history and pools on the admin socket.
func serveAdmin(ctx context.Context, cancel context.CancelCauseFunc, o serveOptions, e *snapshot.Engine, m *cluster.Manager) error {
	listener, err := unixsocket.Listen(filepath.Join(o.stateDir, adminSocket), 0)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		klog.FromContext(ctx).Error(err, "No room for the socket that check, history and pools ask this driver by; volumes are served without it")
		return nil
	}
	if err != nil {
		return fmt.Errorf("serve %s: %w", adminSocket, err)
	}
	find := func(find func(context.Context) ([]snapshot.Finding, error)) http.HandlerFunc {
		return answer(func(ctx context.Context) (any, error) {
			findings, err := find(ctx)
			if m != nil {
				found, _ := m.Orphans()
				findings = append(findings, orphanFindings(found, e.PoolIDs())...)
			}
			return nonNil(findings), err
		})
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /check", find(e.Plan))
	mux.HandleFunc("POST /repair", find(e.Reconcile))
	mux.HandleFunc("GET /history", answer(func(context.Context) (any, error) {
		removed, err := e.History()
		return nonNil(removed), err
	}))
	mux.HandleFunc("GET /pools", answer(func(ctx context.Context) (any, error) { return nonNil(e.Pools(ctx)), nil }))
	if o.profiling {
		mux.HandleFunc("/debug/pprof/", pprof.Index) // also heap, goroutine and others
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	serveListener(ctx, cancel, listener, &http.Server{Handler: mux}) // no timeouts: only root can connect, and profiles take long
	return nil
}

// answer returns a handler that serves the result of ask as JSON.
func answer(ask func(context.Context) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		found, err := ask(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if err := json.NewEncoder(w).Encode(found); err != nil {
			klog.FromContext(r.Context()).V(2).Info("Answer not sent", "error", err)
		}
	}
}

// orphanFindings returns orphans as findings of check. check never repairs them, because
// serve --orphans does. pools maps the names of pools in use to their IDs.
func orphanFindings(found []orphans.Orphan, pools map[string]string) []snapshot.Finding {
	names := map[string]string{}
	for name, id := range pools {
		names[id] = name
	}
	findings := make([]snapshot.Finding, 0, len(found))
	for _, o := range found {
		f := snapshot.Finding{
			Pool: o.Pool, Path: o.Ref.String(), Problem: "Orphan",
			Detail: "no PersistentVolume or VolumeSnapshotContent stands for it",
		}
		if o.Missing != "" {
			f.Pool, f.Problem = cmp.Or(names[o.PoolID], o.PoolID), "Missing"
			f.Detail = fmt.Sprintf("PersistentVolume %s stands for it, and it is not there", o.Missing)
		} else if !o.Since.IsZero() {
			f.Detail += ", since " + o.Since.Local().Format(time.DateTime)
		}
		findings = append(findings, f)
	}
	return findings
}

// askDriver sends a request to the running driver and decodes the answer into found.
// Errors: errNoDriver.
func askDriver(ctx context.Context, stateDir, method, path string, found any) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(stateDir, adminSocket))
	}}}
	request, err := http.NewRequestWithContext(ctx, method, "http://driver"+path, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	// EINVAL means that the path is too long for a socket, so no driver listens on it.
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EINVAL) {
		return errNoDriver
	}
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the driver answered: %s", bytes.TrimSpace(body))
	}
	return json.Unmarshal(body, found)
}
