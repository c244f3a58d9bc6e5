package components

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"fmt"
	"hash"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/hack/image/oci"
)

// Images that tests may run. Their registry is nowhere, so that a node which has
// not got them says so at once.
const (
	PauseImage   = registry + "/pause:1" // to be told to containerd
	BusyboxImage = registry + "/busybox:1"
	// ExampleImage is busybox, as the examples and the chart's test name it.
	ExampleImage = "docker.io/library/busybox:1.37"

	registry = "localhost/e2e"
)

// sidecarRegistry is where the chart has its sidecars from.
const sidecarRegistry = "registry.k8s.io/sig-storage"

// images returns what a cluster and its tests run; and where the names are told
// that Kubernetes' storage tests want, what those run.
func (b *builder) images(wanted map[string][]string) ([]oci.Image, error) {
	shell, err := busybox()
	if err != nil {
		return nil, err
	}
	images := []oci.Image{
		{
			Names:      slices.Concat([]string{PauseImage}, wanted["pause"]),
			Entrypoint: []string{"/pause"},
			Files:      []oci.File{b.program("pause")},
		},
		{
			// The tests want a shell of nginx, and nothing that it serves.
			Names: slices.Concat([]string{BusyboxImage, ExampleImage}, wanted["busybox"], wanted["nginx"]),
			Cmd:   []string{"sh"}, Env: searchPath, Files: shell,
		},
		b.sidecar("csi-provisioner"),
		b.sidecar("csi-snapshotter"),
		b.sidecar("snapshot-controller"),
		b.sidecar("csi-resizer"),
	}
	if wanted == nil {
		return images, nil
	}
	gnu, err := dash()
	if err != nil {
		return nil, err
	}
	agnhost := []oci.File{
		b.program("agnhost"),
		{Path: "/agnhost-2", Link: "agnhost"},
		{Path: "/uploads", Dir: true},
	}
	return append(images,
		oci.Image{
			Names:      wanted["agnhost"],
			Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, Env: searchPath, Files: slices.Concat(shell, agnhost),
		},
		oci.Image{
			Names: wanted["glibc-dns-testing"],
			Cmd:   []string{"sh"}, Env: searchPath, Files: slices.Concat(shell, gnu),
		},
	), nil
}

// searchPath is that of Debian: an image without one has none.
var searchPath = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// program returns what was built as a file of an image, which any user may run,
// whatever the umask was.
func (b *builder) program(name string) oci.File {
	return oci.File{Path: "/" + name, Source: b.programs[name], Mode: 0o755}
}

// sidecar returns the image of a CSI sidecar, which has nothing but the program and
// runs as the user that the original has.
func (b *builder) sidecar(name string) oci.Image {
	return oci.Image{
		Names:      []string{sidecarRegistry + "/" + name + ":" + b.versions[name]},
		Entrypoint: []string{"/" + name},
		User:       "65532:65532",
		Files:      append(users(), b.program(name)),
	}
}

// users are the files that name users and groups, and the directory all may use.
func users() []oci.File {
	return []oci.File{
		{Path: "/etc/passwd", Content: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nnonroot:x:65532:65532:nonroot:/:/bin/false\n")},
		{Path: "/etc/group", Content: []byte("root:x:0:\nnogroup:x:65534:\nnonroot:x:65532:\n")},
		{Path: "/tmp", Dir: true, Mode: 0o777 | os.ModeSticky},
	}
}

// busybox returns the files of an image with busybox under all names it goes by.
func busybox() ([]oci.File, error) {
	file, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("%w; install the package busybox-static", err)
	}
	if err := checkStatic(file); err != nil {
		return nil, fmt.Errorf("%w; install the package busybox-static", err)
	}
	applets, err := exec.Command(file, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list: %w", file, err)
	}
	files := append(users(),
		oci.File{Path: "/bin/busybox", Source: file},
		oci.File{Path: "/usr/bin/env", Link: "/bin/busybox"}, // of scripts' first lines
		oci.File{Path: "/root", Dir: true, Mode: 0o700},
		oci.File{Path: "/var/tmp", Dir: true, Mode: 0o777 | os.ModeSticky},
	)
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" {
			files = append(files, oci.File{Path: path.Join("/bin", applet), Link: "busybox"})
		}
	}
	return files, nil
}

// checkStatic returns an error unless a program works where there are no libraries.
func checkStatic(file string) error {
	content, err := os.Open(file)
	if err != nil {
		return err
	}
	defer content.Close()
	binary, err := elf.NewFile(content)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	libraries, err := binary.ImportedLibraries()
	if err == nil && len(libraries) > 0 {
		err = fmt.Errorf("%s wants the libraries %v", file, libraries)
	}
	return err
}

// dash returns the files that make of busybox what the tests that write without the
// page cache want: dd of GNU, which knows nocache, and a shell that calls it, where
// that of busybox would call its own.
func dash() ([]oci.File, error) {
	var files []oci.File
	for _, program := range []string{"dash", "dd"} {
		file, err := exec.LookPath(program)
		if err != nil {
			return nil, err
		}
		files = append(files, oci.File{Path: "/bin/" + program, Source: file})
		libraries, err := exec.Command("ldd", file).Output()
		if err != nil {
			return nil, fmt.Errorf("ldd %s: %w", file, err)
		}
		for _, library := range regexp.MustCompile(`/\S+`).FindAllString(string(libraries), -1) {
			files = append(files, oci.File{Path: library, Source: library})
		}
	}
	return append(files, oci.File{Path: "/bin/sh", Link: "dash"}), nil
}

// askSuite returns the file that makes Kubernetes' tests ask for images of our
// registry instead of those they have by default, and the names they then ask for,
// by the last part of each without its tag.
func (b *builder) askSuite(ctx context.Context) (repositories string, wanted map[string][]string, err error) {
	const file, list = "repositories.yaml", "images.txt"
	content := fmt.Sprintf("promoterE2eRegistry: %[1]s\ngcRegistry: %[1]s\n", registry)
	test, key := b.programs["e2e.test"], sha256.New()
	fmt.Fprintln(key, test, content)
	dir, err := b.entry(ctx, "repositories", key, func(dir string) error {
		repositories := filepath.Join(dir, file)
		if err := os.WriteFile(repositories, []byte(content), 0o644); err != nil {
			return err
		}
		names, err := run(ctx, dir, "env", "KUBE_TEST_REPO_LIST="+repositories, test, "--list-images")
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, list), []byte(names), 0o644)
	})
	if err != nil {
		return "", nil, err
	}
	names, err := os.ReadFile(filepath.Join(dir, list))
	return filepath.Join(dir, file), ours(string(names)), err
}

// ours returns those of many names that are of our registry.
func ours(names string) map[string][]string {
	found := map[string][]string{}
	for _, name := range strings.Fields(names) {
		if strings.HasPrefix(name, registry+"/") {
			found[shortName(name)] = append(found[shortName(name)], name)
		}
	}
	for _, names := range found {
		slices.Sort(names) // each time the tests tell them in another order
	}
	return found
}

// shortName returns the part of an image's name that tells what it is.
func shortName(image string) string {
	name, _, _ := strings.Cut(path.Base(image), ":")
	return name
}

// imageKey is of how an image is made, and which files of this machine are in it.
// Size and time stand for their content, as they do for make.
func (b *builder) imageKey(image oci.Image) (hash.Hash, error) {
	key := sha256.New()
	if err := hashFiles(key, b.writer); err != nil {
		return nil, err
	}
	if err := json.NewEncoder(key).Encode(image); err != nil {
		return nil, err
	}
	for _, file := range image.Files {
		if file.Source == "" {
			continue
		}
		info, err := os.Stat(file.Source)
		if err != nil {
			return nil, err
		}
		fmt.Fprintln(key, file.Source, info.Size(), info.ModTime().UnixNano())
	}
	return key, nil
}
