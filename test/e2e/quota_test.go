//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/api/v1alpha1"
)

// Change the quota mode of the cluster and change it back, as docs/operations.md says, while pods write.
func TestChangeQuotaMode(t *testing.T) {
	s := newSpace(t)
	t.Cleanup(func() { upgrade(t) })
	for i, node := range lab.Nodes {
		s.writer(fmt.Sprint("writer-", i), node)
	}
	s.claim("old", size("64Mi"))
	s.pod("old", on(lab.Nodes[0]))
	s.running("old")
	s.sh("old", "dd if=/dev/zero of=/data/before bs=1M count=40 && sync /data")

	t.Run("Simple", func(t *testing.T) {
		s := s.in(t)
		changeQuota(t, "simple")
		testSize(s, "old", 64) // data from before does not count
		s.claim("new", size("64Mi"))
		s.pod("new", on(lab.Nodes[1]))
		s.running("new")
		testSize(s, "new", 64)
		s.sh("old", "dd if=/dev/zero of=/data/after bs=1M count=40 && sync /data")
	})
	t.Run("Full", func(t *testing.T) {
		s := s.in(t)
		changeQuota(t, "full")
		exceeds(s, "old", "dd if=/dev/zero of=/data/more bs=1M count=1 conv=fsync") // it contains 80 MiB, its size is 64
		s.sh("old", "rm -f /data/before /data/after /data/more && sync /data")
		testSize(s, "old", 64)
	})
	for i, node := range lab.Nodes {
		s.writes(fmt.Sprint("writer-", i))
		check(t, node)
	}
}

// changeQuota gives all pools another quota mode.
func changeQuota(t *testing.T, mode string) {
	t.Helper()
	commands := strings.Split(strings.TrimSpace(recipe(t, operations, "--set quota=simple")), "\n")
	if len(commands) != 3 {
		t.Fatalf("%d commands, want helm, kubectl, btrfs: %q", len(commands), commands)
	}
	programs := strings.NewReplacer("helm ", lab.helm+" ", "kubectl ", lab.Program("kubectl")+" ", "charts/btrfs-csi", lab.chart, "=simple", "="+mode)
	for _, command := range commands[:2] {
		must(t)(runTool("sh", "-ec", programs.Replace(command)))
	}
	for _, node := range lab.Nodes {
		id := poolID(t, node, "default")
		await(t, lab.pools, id, "be refused for its quota", func(p *v1alpha1.Pool) bool {
			return p.Status.State == "Away" && strings.Contains(p.Status.Message, "refuses it") && strings.Contains(p.Status.Message, "quota "+mode+": the filesystem has")
		})
		onNode(t, node, strings.ReplaceAll(commands[2], "POOL", "default"))
		await(t, lab.pools, id, "have "+mode+" quota", func(p *v1alpha1.Pool) bool {
			return p.Status.State == "Ready" && p.Status.Quota == mode
		})
	}
}
