//go:build e2e

package e2e

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

// contains fails unless a text contains all words.
func contains(t *testing.T, what, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%s: %q has to be in\n%s", what, word, text)
		}
	}
}

// refuses fails unless a command in a pod fails and its stderr contains all words.
func (s *space) refuses(pod, command string, words ...string) {
	s.Helper()
	out, err := s.try(pod, command)
	if err == nil {
		s.Errorf("in pod %s: %s: it has to fail, and says %q", pod, command, out)
		return
	}
	contains(s.T, "in pod "+pod+": "+command, err.Error(), words...)
}

func TestPodsShareAVolume(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.claim("data")
	s.pod("writer", using("data"))
	s.pod("other", using("data"))
	s.pod("reader", using("data"), readOnly)
	home := s.running("writer").Spec.NodeName
	for _, pod := range []string{"other", "reader"} {
		if node := s.running(pod).Spec.NodeName; node != home {
			t.Errorf("pod %s is on %s, its volume on %s", pod, node, home)
		}
	}
	s.sh("writer", "echo one > /data/file")
	s.sh("other", "echo two >> /data/file")
	contains(t, "the reader sees", s.sh("reader", "cat /data/file"), "one\ntwo\n")
	s.refuses("reader", "echo three >> /data/file", "Read-only file system")
	s.deletePod("writer")
	s.sh("other", "echo three >> /data/file")
	contains(t, "the reader sees, without the first pod,", s.sh("reader", "cat /data/file"), "one\ntwo\nthree\n")
}

func TestGroupOfFiles(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	const group = 2345
	user := func(uid int64) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			group, yes := int64(group), true
			p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &uid, FSGroup: &group, RunAsNonRoot: &yes}
		}
	}
	s.claim("data")
	s.pod("first", using("data"), user(1000))
	s.running("first")
	s.sh("first", "echo hello > /data/file && chmod 660 /data/file")
	s.deletePod("first")
	s.pod("second", using("data"), user(2000))
	s.running("second")
	s.sh("second", "echo again >> /data/file")
	contains(t, "owner and group of the file", s.sh("second", "stat -c %u:%g /data/file"), "1000:2345")
	contains(t, "group of the volume", s.sh("second", "stat -c %g:%A /data"), "2345:drwxrws")
}

func TestReadWriteOncePod(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.claim("data", access(corev1.ReadWriteOncePod))
	s.pod("first", using("data"))
	s.running("first")
	s.pod("second", using("data"))
	s.event("Pod", "second", "FailedScheduling", "ReadWriteOncePod")
	never(t, 2*time.Second, api().CoreV1().Pods(s.ns), "second", "run", isReady)
	s.sh("first", "echo hello > /data/file")
	s.deletePod("first")
	s.running("second")
	contains(t, "the second pod sees", s.sh("second", "cat /data/file"), "hello")
}

// A read-only volume of a snapshot is the snapshot itself, for any number of readers.
func TestReadOnlyMany(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.claim("data")
	s.pod("writer", using("data"))
	s.running("writer")
	s.sh("writer", "echo before > /data/file")
	s.snapshot("snap", "data")
	s.ready("snap")
	s.sh("writer", "echo after > /data/file")
	s.claim("view", restoreOf("snap"), access(corev1.ReadOnlyMany))
	s.pod("one", using("view"))
	s.pod("two", using("view"), readOnly)
	for _, pod := range []string{"one", "two"} {
		s.running(pod)
		contains(t, "pod "+pod+" sees", s.sh(pod, "cat /data/file"), "before")
		s.refuses(pod, "echo x > /data/file", "Read-only file system")
		s.refuses(pod, "touch /data/new", "Read-only file system")
	}
	view := find(t, node(t, s.running("one").Spec.NodeName), s.volume("view").Spec.CSI.VolumeHandle)
	if view == nil || view.Kind != "ReadOnlyVolume" {
		t.Errorf("what was made is %+v, a view is wanted", view)
	}
}

func TestSubPath(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	below := func(path string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.Containers[0].VolumeMounts[0].SubPath = path }
	}
	s.claim("data")
	s.pod("whole", using("data"))
	s.pod("part", using("data"), below("some/where"))
	s.running("whole")
	s.running("part")
	s.sh("part", "echo hello > /data/file")
	contains(t, "the whole volume has", s.sh("whole", "cat /data/some/where/file"), "hello")
	s.deletePod("part")
	s.deletePod("whole")
	s.pod("part", using("data"), below("some/where"))
	s.running("part")
	contains(t, "the part has still", s.sh("part", "cat /data/file"), "hello")
}

func TestMountOptions(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	options := []string{"noexec", "nodev", "nosuid", "noatime"}
	s.claim("data", ofClass(newClass(t, nil, func(c *storagev1.StorageClass) { c.MountOptions = options })))
	s.claim("plain")
	for _, pod := range []string{"data", "plain"} {
		s.pod(pod)
		s.running(pod)
		s.sh(pod, `printf '#!/bin/sh\necho it ran\n' > /data/program && chmod +x /data/program`)
	}
	contains(t, "mount options", s.sh("data", "grep ' /data ' /proc/mounts"), options...)
	s.refuses("data", "/data/program", "Permission denied")
	contains(t, "without noexec", s.sh("plain", "/data/program"), "it ran")
}

// A volume stays on a drained node, and its pod waits for the node.
func TestDrain(t *testing.T) {
	s := newSpace(t)
	s.claim("data")
	s.pod("data")
	home := s.running("data").Spec.NodeName
	s.sh("data", "echo hello > /data/file")
	t.Cleanup(func() { kubectl(t, "uncordon", home) })
	kubectl(t, "drain", home, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=60s")
	if mounts, err := volumeMounts(node(t, home)); err != nil || len(mounts) > 0 {
		t.Errorf("after the drain %s has still mounted %q (%v)", home, mounts, err)
	}
	s.pod("data")
	s.event("Pod", "data", "FailedScheduling", "unschedulable")
	kubectl(t, "uncordon", home)
	if now := s.running("data").Spec.NodeName; now != home {
		t.Errorf("the pod runs on %s, its volume is on %s", now, home)
	}
	contains(t, "after the drain", s.sh("data", "cat /data/file"), "hello")
}
