//go:build e2e

package e2e

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
)

// away creates a claim with a file, and a snapshot of it, on a node. Pod, claim and snapshot have the name
// "source".
func (s *space) away(home *cluster.Node) {
	s.Helper()
	s.claim("source")
	s.pod("source", on(home))
	s.running("source")
	s.sh("source", "echo hello > /data/file")
	s.snapshot("source", "source")
	s.ready("source")
}

// cameHome waits until a pod without node constraints runs. It fails unless the pod is on the node of its
// volume's source and sees the data of the source.
func (s *space) cameHome(pod string, home *cluster.Node) {
	s.Helper()
	s.ran(pod, home)
	contains(s.T, "pod "+pod+" sees", s.sh(pod, "cat /data/file"), "hello")
}

// other returns the other node.
func other(node *cluster.Node) *cluster.Node {
	if node == lab.Nodes[0] {
		return lab.Nodes[1]
	}
	return lab.Nodes[0]
}

// sources are the kinds of sources of a volume.
var sources = map[string]func(string) func(*corev1.PersistentVolumeClaim){"restore": restoreOf, "clone": cloneOf}

// A pod runs on the node of its volume, which is the node of the volume's source, whatever was created
// first.
func TestComeHome(t *testing.T) {
	for _, home := range lab.Nodes {
		for kind, of := range sources {
			t.Run(home.Name+"-"+kind, func(t *testing.T) {
				t.Parallel()
				s := newSpace(t)
				s.away(home)
				t.Run("ClaimFirst", func(t *testing.T) {
					s := s.in(t)
					s.claim("early", of("source"))
					s.bound("early")
					s.pod("early")
					s.cameHome("early", home)
				})
				t.Run("PodFirst", func(t *testing.T) {
					s := s.in(t)
					s.pod("late")
					s.claim("late", of("source"))
					s.cameHome("late", home)
				})
				t.Run("Together", func(t *testing.T) {
					s := s.in(t)
					s.claim("together", of("source"))
					s.pod("together")
					s.cameHome("together", home)
				})
				t.Run("SentElsewhere", func(t *testing.T) {
					s := s.in(t)
					s.claim("sent", of("source"), selected(other(home)))
					s.pod("sent")
					s.cameHome("sent", home)
				})
				t.Run("Immediate", func(t *testing.T) {
					s := s.in(t)
					s.claim("immediate", of("source"), ofClass(newClass(t, nil, immediate)))
					s.pod("immediate")
					s.cameHome("immediate", home)
				})
			})
		}
	}
}

// All objects are created at once, as by kubectl from one file.
func TestComeHomeFromWhatIsNotYet(t *testing.T) {
	t.Parallel()
	for _, home := range lab.Nodes {
		t.Run(home.Name, func(t *testing.T) {
			s := newSpace(t)
			s.away(home)
			s.pod("restored")
			s.claim("restored", restoreOf("later"))
			s.snapshot("later", "source")
			s.cameHome("restored", home)
		})
	}
}

func TestTenComeHome(t *testing.T) {
	t.Parallel()
	home := lab.Nodes[1]
	s := newSpace(t)
	s.away(home)
	began := time.Now()
	for n := range 10 {
		name := fmt.Sprint("copy-", n)
		s.claim(name, restoreOf("source"))
		s.pod(name)
	}
	for n := range 10 {
		s.cameHome(fmt.Sprint("copy-", n), home)
	}
	t.Logf("10 pods with a restored volume each ran after %.1f s", time.Since(began).Seconds())
}

// While the node of a source is down an Event names the node, and no volume is created on another node.
func TestSourceOnDeadNode(t *testing.T) {
	home := lab.Nodes[1]
	s := newSpace(t)
	s.away(home)
	s.deletePod("source")
	s.no(home.Kill(ctx))
	began := time.Now()
	t.Cleanup(func() { // before what is in the space is deleted
		if !home.Running() {
			s.no(home.Start(ctx))
		}
		driverReady(t, home)
	})
	for kind, of := range sources {
		s.claim(kind, of("source"))
		s.pod(kind)
	}
	for kind := range sources {
		s.event("PersistentVolumeClaim", kind, "SourceUnavailable", "node "+home.Name, "not ready")
	}
	t.Logf("the Events came %.1f s after the node died", time.Since(began).Seconds())
	for kind := range sources {
		claim, err := api().CoreV1().PersistentVolumeClaims(s.ns).Get(ctx, kind, metav1.GetOptions{})
		if s.no(err); claim.Status.Phase != corev1.ClaimPending {
			t.Errorf("claim %s is %s, while the node of its source is dead", kind, claim.Status.Phase)
		}
	}
	s.no(home.Start(ctx))
	for kind := range sources {
		s.cameHome(kind, home)
	}
}
