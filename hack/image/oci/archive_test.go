package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const name = "localhost/test/image:1"

// sample has a file of each kind, not sorted, below directories of which only one
// is told.
func sample(t *testing.T) Image {
	source := filepath.Join(t.TempDir(), "tool")
	write(t, source, "program", 0o755)
	return Image{
		Names:        []string{name, "registry.example/other:2"},
		Architecture: "arm64",
		Files: []File{
			{Path: "/usr/bin/tool", Source: source},
			{Path: "bin", Link: "usr/bin"},
			{Path: "/etc/motd", Content: []byte("hello"), UID: 7, GID: 8},
			{Path: "/usr", Dir: true, Mode: 0o700},
			{Path: "/tmp", Dir: true, Mode: 0o777 | fs.ModeSticky},
		},
		Entrypoint: []string{"/usr/bin/tool"}, Cmd: []string{"serve"}, Env: []string{"A=b"},
		User: "1:2", WorkingDir: "/tmp", Labels: map[string]string{"b": "2", "a": "1"},
	}
}

func TestSameInputSameBytes(t *testing.T) {
	image, dir := sample(t), t.TempDir()
	first, err := image.WriteArchive(filepath.Join(dir, "first"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(image.Files)
	if err := os.Chtimes(image.Files[4].Source, nowhen, nowhen); err != nil {
		t.Fatal(err)
	}
	second, err := image.WriteArchive(filepath.Join(dir, "second"))
	if err != nil {
		t.Fatal(err)
	}
	if first != second || !bytes.Equal(read(t, filepath.Join(dir, "first")), read(t, filepath.Join(dir, "second"))) {
		t.Errorf("two archives of one image differ: %+v and %+v", first, second)
	}

	image.Files[0].Mode = 0o755
	third, err := image.WriteArchive(filepath.Join(dir, "third"))
	if err != nil {
		t.Fatal(err)
	}
	if third.Digest == first.Digest {
		t.Errorf("another mode of %s did not change the digest", image.Files[0].Path)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 3 {
		t.Errorf("the directory holds %v (%v), want the three archives alone", left, err)
	}
}

func TestLayer(t *testing.T) {
	for _, uncompressed := range []bool{false, true} {
		t.Setenv("SOURCE_DATE_EPOCH", "86400")
		image := sample(t)
		image.Uncompressed = uncompressed
		entries := entriesOf(t, open(t, image).layer(t, uncompressed))
		want := []tar.Header{
			{Name: "bin", Typeflag: tar.TypeSymlink, Linkname: "usr/bin", Mode: 0o777},
			{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
			{Name: "etc/motd", Typeflag: tar.TypeReg, Mode: 0o644, Size: 5, Uid: 7, Gid: 8},
			{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777},
			{Name: "usr/", Typeflag: tar.TypeDir, Mode: 0o700},
			{Name: "usr/bin/", Typeflag: tar.TypeDir, Mode: 0o755},
			{Name: "usr/bin/tool", Typeflag: tar.TypeReg, Mode: 0o755, Size: 7},
		}
		for i := range entries {
			if got := entries[i].ModTime.Unix(); got != 86400 {
				t.Errorf("%s was modified at %d, want SOURCE_DATE_EPOCH", entries[i].Name, got)
			}
			entries[i] = tar.Header{
				Name: entries[i].Name, Typeflag: entries[i].Typeflag, Linkname: entries[i].Linkname, Mode: entries[i].Mode,
				Size: entries[i].Size, Uid: entries[i].Uid, Gid: entries[i].Gid, Uname: entries[i].Uname, Gname: entries[i].Gname,
			}
		}
		if !reflect.DeepEqual(entries, want) {
			t.Errorf("uncompressed %v: the layer holds\n%+v, want\n%+v", uncompressed, entries, want)
		}
	}
}

func TestNamesAndConfig(t *testing.T) {
	image := sample(t)
	archive := open(t, image)
	names := []string{}
	for _, line := range archive.index.Manifests {
		if line.Digest.String() != archive.result.Digest || line.Platform.Architecture != "arm64" {
			t.Errorf("index has %+v, want digest %s for arm64", line, archive.result.Digest)
		}
		names = append(names, line.Annotations["io.containerd.image.name"])
	}
	if !slices.Equal(names, image.Names) {
		t.Errorf("the index names %q, want %q", names, image.Names)
	}

	var docker []dockerManifest
	decode(t, archive.entries["manifest.json"], &docker)
	if len(docker) != 1 || !slices.Equal(docker[0].RepoTags, image.Names) {
		t.Fatalf("manifest.json is %+v, want names %q", docker, image.Names)
	}
	if docker[0].Config != blob(archive.manifest.Config.Digest) || docker[0].Layers[0] != blob(archive.manifest.Layers[0].Digest) {
		t.Errorf("manifest.json is %+v, want what the manifest has: %+v", docker[0], archive.manifest)
	}

	var config ocispec.Image
	decode(t, archive.blob(t, archive.manifest.Config), &config)
	want := ocispec.ImageConfig{
		User: "1:2", WorkingDir: "/tmp", Env: []string{"A=b"}, Entrypoint: []string{"/usr/bin/tool"}, Cmd: []string{"serve"},
		Labels: map[string]string{"a": "1", "b": "2"},
	}
	if config.Architecture != "arm64" || config.OS != "linux" || !reflect.DeepEqual(config.Config, want) {
		t.Errorf("config is %+v, want %+v", config, want)
	}
	plain := archive.layer(t, false)
	if got := digest.FromBytes(plain); config.RootFS.DiffIDs[0] != got {
		t.Errorf("diff ID is %s, the layer has %s", config.RootFS.DiffIDs[0], got)
	}
	if archive.result.Unpacked != 12 || archive.result.Size != archive.manifest.Layers[0].Size {
		t.Errorf("the result is %+v, want 12 bytes unpacked and the layer's %d", archive.result, archive.manifest.Layers[0].Size)
	}
}

func TestRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Image)
		want   string
	}{
		{"no name", func(i *Image) { i.Names = nil }, "no name"},
		{"no registry", func(i *Image) { i.Names = []string{"debian:12"} }, "registry"},
		{"no tag", func(i *Image) { i.Names = []string{"localhost/debian"} }, "tag"},
		{"digest", func(i *Image) { i.Names = []string{name + "@sha256:" + strings.Repeat("a", 64)} }, "tag"},
		{"capitals", func(i *Image) { i.Names = []string{"localhost/Debian:12"} }, "lowercase"},
		{"no architecture", func(i *Image) { i.Architecture = "" }, "architecture"},
		{"no source", func(i *Image) { i.Files[0].Source += ".missing" }, "no such file"},
		{"source is a directory", func(i *Image) { i.Files[0].Source = filepath.Dir(i.Files[0].Source) }, "regular file"},
		{"below a link", func(i *Image) { i.Files = append(i.Files, File{Path: "/bin/sh"}) }, "no directory"},
		{"below a file", func(i *Image) { i.Files = append(i.Files, File{Path: "/etc/motd/x/y"}) }, "no directory"},
		{"the root", func(i *Image) { i.Files = append(i.Files, File{Path: "/", Dir: true}) }, "root directory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			image, dir := sample(t), t.TempDir()
			test.change(&image)
			_, err := image.WriteArchive(filepath.Join(dir, "image.tar"))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error %v, want one with %q", err, test.want)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
				t.Errorf("%v was left behind (%v)", left, err)
			}
		})
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if _, err := sample(t).WriteArchive(filepath.Join(t.TempDir(), "image.tar")); err == nil || !strings.Contains(err.Error(), "SOURCE_DATE_EPOCH") {
		t.Errorf("SOURCE_DATE_EPOCH=yesterday gave error %v", err)
	}
}

// opened is an archive that was read back.
type opened struct {
	result   Result
	entries  map[string][]byte
	index    ocispec.Index
	manifest ocispec.Manifest
}

// open writes an image and reads it back.
func open(t *testing.T, image Image) opened {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	result, err := image.WriteArchive(file)
	if err != nil {
		t.Fatal(err)
	}
	archive := opened{result: result, entries: map[string][]byte{}}
	for r := tar.NewReader(bytes.NewReader(read(t, file))); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if archive.entries[header.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	decode(t, archive.entries["index.json"], &archive.index)
	decode(t, archive.blob(t, archive.index.Manifests[0]), &archive.manifest)
	return archive
}

// blob returns what a descriptor is of, after a look at size and digest.
func (a opened) blob(t *testing.T, d ocispec.Descriptor) []byte {
	t.Helper()
	content, found := a.entries[blob(d.Digest)]
	if !found {
		t.Fatalf("no %s among %q", blob(d.Digest), slices.Collect(maps.Keys(a.entries)))
	}
	if int64(len(content)) != d.Size || digest.FromBytes(content) != d.Digest {
		t.Fatalf("%s has %d bytes and digest %s, want %+v", blob(d.Digest), len(content), digest.FromBytes(content), d)
	}
	return content
}

// layer returns the uncompressed layer.
func (a opened) layer(t *testing.T, uncompressed bool) []byte {
	t.Helper()
	content := a.blob(t, a.manifest.Layers[0])
	if uncompressed {
		return content
	}
	unzip, err := gzip.NewReader(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(unzip)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

func entriesOf(t *testing.T, layer []byte) (entries []tar.Header) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, *header)
	}
}

func decode(t *testing.T, content []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(content, into); err != nil {
		t.Fatalf("%v in %s", err, content)
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
