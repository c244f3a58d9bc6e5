package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
)

// TestHoarderOfConnections: a client keeps thousands of connections open. The driver uses
// at most mostConnections descriptors, and the kubelet's probes and a scrape succeed.
func TestHoarderOfConnections(t *testing.T) {
	const hoarded = 3000
	address := freeAddress(t)
	d := startDriver(t, btrfstest.Mount(t), "--http="+address)
	descriptors := func() int {
		open, err := os.ReadDir(filepath.Join("/proc", fmt.Sprint(d.Cmd.Process.Pid), "fd"))
		if err != nil {
			t.Fatal(err)
		}
		return len(open)
	}
	before := descriptors()

	var hoard []net.Conn
	t.Cleanup(func() {
		for _, conn := range hoard {
			_ = conn.Close()
		}
	})
	most := 0
	for n := range hoarded {
		hoard = append(hoard, keepAlive(t, address, "127.0.0.2"))
		if n%100 == 0 {
			most = max(most, descriptors())
		}
	}
	most = max(most, descriptors())
	if limit := before + mostConnections + 20; most > limit { // 20 for the driver itself
		t.Errorf("%d connections are open, and the driver has %d descriptors open, want no more than %d", hoarded, most, limit)
	}

	ctx, cancel := context.WithCancel(t.Context())
	var hoarders sync.WaitGroup
	var opened atomic.Int64
	for range 4 {
		hoarders.Go(func() {
			var held []net.Conn
			for ctx.Err() == nil {
				if conn, err := dialFrom(ctx, address, "127.0.0.2"); err == nil {
					opened.Add(1)
					held = append(held, conn)
				}
				time.Sleep(time.Millisecond)
			}
			for _, conn := range held {
				_ = conn.Close()
			}
		})
	}
	defer hoarders.Wait()
	defer cancel()
	kubelet := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
		return dialFrom(ctx, address, "127.0.0.1")
	}}}
	for n := 0; n < 20 || opened.Load() < 2*mostConnections; n++ {
		for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
			answer, err := kubelet.Get("http://" + address + path)
			if err != nil {
				t.Fatalf("%s, among %d connections of another client: %v", path, opened.Load(), err)
			}
			_ = answer.Body.Close()
			if answer.StatusCode != http.StatusOK {
				t.Fatalf("%s: %s", path, answer.Status)
			}
		}
	}
}

// keepAlive returns an idle connection that has already had an answer.
func keepAlive(t *testing.T, address, from string) net.Conn {
	t.Helper()
	conn, err := dialFrom(t.Context(), address, from)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "GET /healthz HTTP/1.1\r\nHost: driver\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	return conn
}

func dialFrom(ctx context.Context, address, from string) (net.Conn, error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	return dialer.DialContext(ctx, "tcp", address)
}

// TestGreediestClientLosesItsOldest: the client with the most connections loses its oldest
// one, and at equal numbers the oldest of all is closed.
func TestGreediestClientLosesItsOldest(t *testing.T) {
	cases := map[string]struct{ open, kept []string }{
		"within":           {[]string{"a1", "b1", "a2"}, []string{"a1", "b1", "a2"}},
		"one hoards":       {[]string{"b1", "a1", "a2", "a3"}, []string{"b1", "a2", "a3"}},
		"another connects": {[]string{"a1", "a2", "a3", "b1"}, []string{"a2", "a3", "b1"}},
		"all have one":     {[]string{"a1", "b1", "c1", "d1"}, []string{"b1", "c1", "d1"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			l := &boundedListener{most: 3}
			names := map[*boundedConn]string{}
			for _, conn := range c.open {
				ours, theirs := net.Pipe()
				t.Cleanup(func() { _ = theirs.Close() })
				b := &boundedConn{Conn: ours, listener: l, client: conn[:1]}
				names[b] = conn
				if surplus := l.add(b); surplus != nil {
					_ = surplus.Close()
				}
			}
			var kept []string
			for _, b := range l.open {
				kept = append(kept, names[b])
			}
			if fmt.Sprint(kept) != fmt.Sprint(c.kept) {
				t.Errorf("kept %v, want %v", kept, c.kept)
			}
		})
	}
}
