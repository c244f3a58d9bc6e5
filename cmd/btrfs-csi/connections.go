package main

import (
	"net"
	"slices"
	"sync"
)

// mostConnections is how many connections the HTTP port keeps: a handful for the kubelet
// and for those that scrape, and little memory and few descriptors for anybody else.
const mostConnections = 100

// boundedListener accepts every connection, and keeps no more than most of them. A limit
// on accepting would let a client that hoards connections shut out the kubelet's probes.
// Here the client with the most connections loses its oldest one instead.
type boundedListener struct {
	net.Listener
	most int

	mu   sync.Mutex     // protects open
	open []*boundedConn // oldest first
}

// boundedConn is a connection of a boundedListener until it is closed.
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

// add returns the connection that has to go for the new one.
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

// Close may be called more than once: by the listener and by the server.
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
