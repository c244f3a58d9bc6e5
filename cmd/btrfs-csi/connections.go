package main

import (
	"net"
	"slices"
	"sync"
)

// mostConnections limits the memory and descriptors for the HTTP port. The kubelet and
// scrapers need a few connections.
const mostConnections = 100

// boundedListener accepts every connection. Beyond most, the client with the most
// connections loses its oldest one. A limit on accepting would let one client block the
// kubelet's probes.
type boundedListener struct {
	net.Listener
	most int

	mu   sync.Mutex     // protects open
	open []*boundedConn // oldest first
}

// boundedConn is an open connection of a boundedListener.
type boundedConn struct {
	net.Conn
	listener *boundedListener
	client   string // address without port
}

func (l *boundedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &boundedConn{Conn: conn, listener: l, client: clientOf(conn.RemoteAddr())}
	if surplus := l.add(c); surplus != nil {
		_ = surplus.Close()
	}
	return c, nil
}

// add adds a connection and returns the one to close for it, or nil.
func (l *boundedListener) add(c *boundedConn) (surplus *boundedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = append(l.open, c)
	if len(l.open) <= l.most {
		return nil
	}
	counts := map[string]int{}
	for _, o := range l.open {
		counts[o.client]++
	}
	for _, o := range l.open {
		if surplus == nil || counts[o.client] > counts[surplus.client] {
			surplus = o
		}
	}
	return surplus
}

func (l *boundedListener) remove(c *boundedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = slices.DeleteFunc(l.open, func(o *boundedConn) bool { return o == c })
}

// Close closes the connection. The listener and the server may both call it.
func (c *boundedConn) Close() error {
	c.listener.remove(c)
	return c.Conn.Close()
}

func clientOf(address net.Addr) string {
	client, _, err := net.SplitHostPort(address.String())
	if err != nil {
		return address.String()
	}
	return client
}
