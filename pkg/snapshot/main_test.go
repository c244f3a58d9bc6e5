package snapshot_test

import (
	"flag"
	"io"
	"os"
	"testing"

	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
)

// TestMain also silences the log, to which thousands of crashes would write hundreds of thousands
// of lines.
func TestMain(m *testing.M) {
	if os.Getenv(attackVariable) != "" {
		attack(os.Stdin, os.Stdout)
		return
	}
	flags := flag.NewFlagSet("klog", flag.ExitOnError)
	klog.InitFlags(flags)
	_ = flags.Set("logtostderr", "false")
	_ = flags.Set("stderrthreshold", "FATAL")
	klog.SetOutput(io.Discard)
	os.Exit(btrfstest.Main(m.Run))
}
