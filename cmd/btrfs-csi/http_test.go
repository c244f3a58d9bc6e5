package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestSlowClients: whatever a client on the network leaves undone, its connection ends after a
// bounded time.
func TestSlowClients(t *testing.T) {
	const request = "GET /metrics HTTP/1.1\r\nHost: node\r\n"
	for name, c := range map[string]struct {
		act  func(t *testing.T, conn net.Conn)
		want time.Duration
	}{
		"sends nothing":          {func(*testing.T, net.Conn) {}, 10 * time.Second},
		"never ends its headers": {func(t *testing.T, conn net.Conn) { send(t, conn, request) }, 10 * time.Second},
		"never ends its body": {func(t *testing.T, conn net.Conn) {
			send(t, conn, request+"Content-Length: 10\r\n\r\n12345")
		}, 10 * time.Second},
		"sends byte by byte": {func(_ *testing.T, conn net.Conn) {
			go func() {
				for {
					if _, err := io.WriteString(conn, "x"); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
			}()
		}, 10 * time.Second},
		"keeps the connection": {func(t *testing.T, conn net.Conn) {
			send(t, conn, request+"\r\n")
			answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer answer.Body.Close()
			if _, err := io.Copy(io.Discard, answer.Body); err != nil {
				t.Error(err)
			}
		}, time.Minute},
		"does not read the answer": {func(t *testing.T, conn net.Conn) {
			send(t, conn, request+"\r\n")
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			if answer, err := io.ReadAll(conn); len(answer) > 0 {
				t.Errorf("after two minutes the client reads %d bytes, %v", len(answer), err)
			}
		}, 2 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server, client := net.Pipe()
				ctx, cancel := context.WithCancelCause(t.Context())
				listener := &oneConnection{conn: make(chan net.Conn, 1), closed: ctx.Done()}
				handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					_, _ = io.WriteString(w, strings.Repeat("x", 1<<20))
				})
				serveListener(ctx, cancel, listener, strictServer(handler))
				listener.conn <- server

				began := time.Now()
				c.act(t, client)
				if _, err := io.Copy(io.Discard, client); err != nil && !strings.Contains(err.Error(), "closed pipe") {
					t.Error(err)
				}
				if took := time.Since(began); took != c.want {
					t.Errorf("the connection ended after %s, want %s", took, c.want)
				}
				cancel(nil)
				time.Sleep(time.Second) // until all have seen the end
			})
		})
	}
}

func send(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Error(err)
	}
}

// oneConnection is a listener with one connection.
type oneConnection struct {
	conn   chan net.Conn
	closed <-chan struct{}
}

func (l *oneConnection) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conn:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *oneConnection) Close() error   { return nil }
func (l *oneConnection) Addr() net.Addr { return &net.TCPAddr{} }
