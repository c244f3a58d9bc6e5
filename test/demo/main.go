// Command demo makes a btrfs filesystem in a sparse file, starts a driver that serves it, and
// shows the whole life of a volume with real data: snapshot, restore, clone, expansion,
// deletion, and a driver that is killed meanwhile. Each step prints what it did, how long it
// took, and what proves it. The demo removes all that it made.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	binary := flag.String("binary", "bin/btrfs-csi", "the driver")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *binary, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, binary string, out io.Writer) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("the demo mounts filesystems: run it as root")
	}
	d := &demo{out: out}
	d.rig, err = newRig(ctx, binary)
	if d.rig != nil {
		defer func() { err = errors.Join(err, d.leave()) }()
	}
	if err != nil {
		return err
	}
	return d.run(ctx)
}
