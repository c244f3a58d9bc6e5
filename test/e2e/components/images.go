package components

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"debug/elf"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing/fstest"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/btrfs-csi/btrfs-csi/build/image/archive"
)

// These are images for tests. Their registry does not exist, so that a node without them fails at once.
const (
	PauseImage   = registry + "/pause:1" // containerd is configured with it
	BusyboxImage = registry + "/busybox:1"
	// ExampleImage is the name of busybox in the examples and in the test of the chart.
	ExampleImage = "docker.io/library/busybox:1.37"

	registry = "localhost/e2e"
)

// sidecarRegistry is the registry of the sidecars in the chart.
const sidecarRegistry = "registry.k8s.io/sig-storage"

// image has the name and the files of an image.
type image struct {
	names  []string
	config v1.Config
	files  fstest.MapFS
}

// images returns the images of a cluster and its tests. If wanted has the names in Kubernetes' storage tests, it
// returns their images, too.
func (b *builder) images(wanted map[string][]string) ([]image, error) {
	shell, err := busybox()
	if err != nil {
		return nil, err
	}
	// The tests use only the shell of nginx.
	images := []image{{
		names:  slices.Concat([]string{BusyboxImage, ExampleImage}, wanted["busybox"], wanted["nginx"]),
		config: v1.Config{Cmd: []string{"sh"}, Env: searchPath},
		files:  shell,
	}}
	pause, err := b.program("pause")
	if err != nil {
		return nil, err
	}
	images = append(images, image{
		names:  slices.Concat([]string{PauseImage}, wanted["pause"]),
		config: v1.Config{Entrypoint: []string{"/pause"}},
		files:  pause,
	})
	for _, name := range []string{"csi-provisioner", "csi-snapshotter", "snapshot-controller", "csi-resizer"} {
		sidecar, err := b.sidecar(name)
		if err != nil {
			return nil, err
		}
		images = append(images, sidecar)
	}
	if wanted == nil {
		return images, nil
	}
	gnu, err := dash()
	if err != nil {
		return nil, err
	}
	agnhost, err := b.program("agnhost")
	if err != nil {
		return nil, err
	}
	agnhost["agnhost-2"] = link("agnhost")
	agnhost["uploads"] = &fstest.MapFile{Mode: fs.ModeDir | 0o755}
	return append(images,
		image{
			names:  wanted["agnhost"],
			config: v1.Config{Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, Env: searchPath},
			files:  joined(shell, agnhost),
		},
		image{
			names:  wanted["glibc-dns-testing"],
			config: v1.Config{Cmd: []string{"sh"}, Env: searchPath},
			files:  joined(shell, gnu),
		},
	), nil
}

// searchPath is Debian's PATH. Without it an image has no PATH.
var searchPath = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// joined returns the union of several sets of files. Later sets override earlier ones.
func joined(all ...fstest.MapFS) fstest.MapFS {
	files := fstest.MapFS{}
	for _, some := range all {
		maps.Copy(files, some)
	}
	return files
}

// program returns a built program as a file in the root directory of an image.
func (b *builder) program(name string) (fstest.MapFS, error) {
	file, err := executable(b.programs[name])
	return fstest.MapFS{name: file}, err
}

// executable returns a file of an image that any user may run, whatever the umask was.
func executable(source string) (*fstest.MapFile, error) {
	content, err := os.ReadFile(source)
	return &fstest.MapFile{Data: content, Mode: 0o755}, err
}

func link(to string) *fstest.MapFile {
	return &fstest.MapFile{Data: []byte(to), Mode: fs.ModeSymlink | 0o777}
}

// sidecar returns the image of a CSI sidecar. It contains only the program, and runs as the same user as the
// original.
func (b *builder) sidecar(name string) (image, error) {
	program, err := b.program(name)
	return image{
		names:  []string{sidecarRegistry + "/" + name + ":" + b.versions[name]},
		config: v1.Config{Entrypoint: []string{"/" + name}, User: "65532:65532"},
		files:  joined(users(), program),
	}, err
}

// users returns /etc/passwd, /etc/group, and a directory that all users may write.
func users() fstest.MapFS {
	return fstest.MapFS{
		"etc/passwd": {Data: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nnonroot:x:65532:65532:nonroot:/:/bin/false\n"), Mode: 0o644},
		"etc/group":  {Data: []byte("root:x:0:\nnogroup:x:65534:\nnonroot:x:65532:\n"), Mode: 0o644},
		"tmp":        {Mode: fs.ModeDir | fs.ModeSticky | 0o777},
	}
}

// busybox returns the files of an image with busybox under the names of all its applets.
func busybox() (fstest.MapFS, error) {
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
	files := users()
	for _, applet := range strings.Fields(string(applets)) {
		files["bin/"+applet] = link("busybox")
	}
	files["usr/bin/env"] = link("/bin/busybox") // for the first lines of scripts
	files["root"] = &fstest.MapFile{Mode: fs.ModeDir | 0o700}
	files["var/tmp"] = &fstest.MapFile{Mode: fs.ModeDir | fs.ModeSticky | 0o777}
	files["bin/busybox"], err = executable(file)
	return files, err
}

// checkStatic fails unless a program works without libraries.
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

// dash returns the files that busybox lacks for tests that write without the page cache: GNU's dd, which has
// nocache, and a shell that calls it. The shell of busybox would call its own dd.
func dash() (fstest.MapFS, error) {
	files := fstest.MapFS{"bin/sh": link("dash")}
	for _, program := range []string{"dash", "dd"} {
		file, err := exec.LookPath(program)
		if err != nil {
			return nil, err
		}
		if files["bin/"+program], err = executable(file); err != nil {
			return nil, err
		}
		libraries, err := exec.Command("ldd", file).Output()
		if err != nil {
			return nil, fmt.Errorf("ldd %s: %w", file, err)
		}
		for _, library := range regexp.MustCompile(`/\S+`).FindAllString(string(libraries), -1) {
			if files[library[1:]], err = executable(library); err != nil {
				return nil, err
			}
		}
	}
	return files, nil
}

// askSuite returns the file by which Kubernetes' tests take their images from our registry, and the names of the
// images that they then use, by the last part of each without its tag.
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

// ours returns the names that are of our registry.
func ours(names string) map[string][]string {
	found := map[string][]string{}
	for _, name := range strings.Fields(names) {
		if strings.HasPrefix(name, registry+"/") {
			found[shortName(name)] = append(found[shortName(name)], name)
		}
	}
	for _, names := range found {
		slices.Sort(names) // the tests list them in a random order
	}
	return found
}

// shortName returns the last part of an image's name, without its tag.
func shortName(image string) string {
	name, _, _ := strings.Cut(path.Base(image), ":")
	return name
}

// archive writes an image, unless the cache has one of the same files.
func (b *builder) archive(ctx context.Context, image image) (string, error) {
	made, err := archive.Image(image.files, gzip.NoCompression, v1.ConfigFile{Architecture: runtime.GOARCH, Config: image.config})
	if err != nil {
		return "", err
	}
	digest, err := made.Digest()
	if err != nil {
		return "", err
	}
	key, name := sha256.New(), shortName(image.names[0])
	fmt.Fprintln(key, digest, image.names)
	dir, err := b.entry(ctx, "image-"+name, key, func(dir string) error {
		return archive.Write(filepath.Join(dir, name+".tar"), made, image.names...)
	})
	return filepath.Join(dir, name+".tar"), err
}
