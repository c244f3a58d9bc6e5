package simulate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"sync"

	"github.com/btrfs-csi/btrfs-csi/pkg/cluster/clustertest"
)

// errUnreachable is what a client sees of a partition, and of an answer that was lost.
var errUnreachable = errors.New("connection reset by the simulated network")

// network is between one process and the API server.
type network struct {
	api  *clustertest.API
	gate *gate
	who  string

	mu      sync.Mutex
	watches map[*watched]bool
}

func newNetwork(api *clustertest.API, g *gate, who string) *network {
	return &network{api: api, gate: g, who: who, watches: map[*watched]bool{}}
}

// RoundTrip waits until the scheduler lets the request go.
func (n *network) RoundTrip(r *http.Request) (*http.Response, error) {
	what := r.Method + " " + r.URL.Path
	watches := r.URL.Query().Get("watch") != ""
	if selector := r.URL.Query().Get("fieldSelector"); selector != "" {
		what += "?" + selector
	}
	if watches {
		what += " (watch)"
	}
	v := n.gate.wait(r.Context(), kindRequest, n.who, what)
	switch v {
	case gone, fail:
		return nil, errUnreachable
	case conflict:
		return refusal(r, http.StatusConflict, "Conflict"), nil
	case expire:
		return refusal(r, http.StatusGone, "Expired"), nil
	}
	response, err := n.api.RoundTrip(r)
	if err != nil || v == lose {
		if err == nil {
			_ = response.Body.Close()
		}
		return nil, errUnreachable
	}
	if watches {
		w := &watched{network: n, body: response.Body, ctx: r.Context(), what: what}
		n.mu.Lock()
		n.watches[w] = true
		n.mu.Unlock()
		response.Body = w
	}
	return response, nil
}

// drop ends all watches.
func (n *network) drop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for w := range n.watches {
		_ = w.body.Close()
	}
	clear(n.watches)
}

// watched is the body of a watch, whose events come when the scheduler says.
type watched struct {
	network *network
	body    io.ReadCloser
	ctx     context.Context
	what    string
	rest    []byte
}

func (w *watched) Read(p []byte) (int, error) {
	if len(w.rest) == 0 {
		data := make([]byte, 1<<16)
		n, err := w.body.Read(data)
		if err != nil {
			return 0, err
		}
		if v := w.network.gate.wait(w.ctx, kindWatch, w.network.who, w.what); v != pass {
			_ = w.Close()
			return 0, io.ErrUnexpectedEOF
		}
		w.rest = data[:n]
	}
	n := copy(p, w.rest)
	w.rest = w.rest[n:]
	return n, nil
}

func (w *watched) Close() error {
	w.network.mu.Lock()
	delete(w.network.watches, w)
	w.network.mu.Unlock()
	return w.body.Close()
}

func refusal(r *http.Request, code int, reason string) *http.Response {
	body := fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d}`, reason, code)
	return &http.Response{
		StatusCode: code, Status: http.StatusText(code), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader([]byte(body))),
	}
}

// Errors of a conn.
var (
	errNotFound = errors.New("not found")
	errConflict = errors.New("conflict")
)

// conn is the client of a rule. It writes what was read from a view, which may be old.
type conn struct{ transport http.RoundTripper }

func (c conn) do(ctx context.Context, method, at string, object any) error {
	var body io.Reader
	if object != nil {
		data, err := json.Marshal(object)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://api"+at, body)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := c.transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusNotFound:
		return errNotFound
	case http.StatusConflict:
		return errConflict
	}
	return fmt.Errorf("%s %s: %s", method, at, response.Status)
}

type named interface{ GetName() string }

func (c conn) create(ctx context.Context, dir string, o named) error {
	return c.do(ctx, http.MethodPost, dir, o)
}

func (c conn) update(ctx context.Context, dir string, o named) error {
	return c.do(ctx, http.MethodPut, path.Join(dir, o.GetName()), o)
}

func (c conn) updateStatus(ctx context.Context, dir string, o named) error {
	return c.do(ctx, http.MethodPut, path.Join(dir, o.GetName(), "status"), o)
}

func (c conn) remove(ctx context.Context, dir, name string) error {
	return c.do(ctx, http.MethodDelete, path.Join(dir, name), nil)
}
