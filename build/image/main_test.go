package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDockerfileSaysTheSame: the last stage of the Dockerfile and the archive have the same
// configuration.
func TestDockerfileSaysTheSame(t *testing.T) {
	content, err := os.ReadFile(filepath.Join("..", "..", "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	_, last, found := strings.Cut(string(content), "FROM scratch\n")
	if !found {
		t.Fatal("the last stage is not FROM scratch")
	}
	image := release{version: "${VERSION}", revision: "${REVISION}", binary: "/btrfs-csi", license: "LICENSE"}
	config := image.config()

	labels := regexp.MustCompile(`(org\.opencontainers\.image\.\w+)="([^"]*)"`).FindAllStringSubmatch(last, -1)
	if len(labels) != len(config.Labels) {
		t.Errorf("the Dockerfile has %d labels, the archive %d", len(labels), len(config.Labels))
	}
	for _, label := range labels {
		if config.Labels[label[1]] != label[2] {
			t.Errorf("label %s is %q in the Dockerfile, %q in the archive", label[1], label[2], config.Labels[label[1]])
		}
	}
	lines := []string{"ENTRYPOINT " + list(t, config.Entrypoint), "CMD " + list(t, config.Cmd)}
	for _, variable := range config.Env {
		lines = append(lines, "ENV "+variable)
	}
	for _, file := range image.files() {
		lines = append(lines, file.source+" "+file.path)
	}
	for _, line := range lines {
		if !strings.Contains(last, line+"\n") {
			t.Errorf("the Dockerfile has no %q", line)
		}
	}
}

func list(t *testing.T, words []string) string {
	t.Helper()
	text, err := json.Marshal(words)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestBinaryMustBeStatic(t *testing.T) {
	err := release{binary: program}.write(host(t), t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "static") {
		t.Errorf("a dynamic binary gave error %v", err)
	}
}

func TestTargetOf(t *testing.T) {
	if _, err := targetOf("riscv64"); err == nil || !strings.Contains(err.Error(), "riscv64") {
		t.Errorf("an unknown architecture gave error %v", err)
	}
}
