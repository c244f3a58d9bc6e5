package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

var (
	tags   = []string{"localhost/test/image:1", "registry.example/other:2"}
	day    = time.Unix(86400, 0).UTC()
	config = v1.Config{
		User: "1:2", WorkingDir: "/tmp", Env: []string{"A=b"}, Entrypoint: []string{"/usr/bin/tool"}, Cmd: []string{"serve"},
		Labels: map[string]string{"a": "1", "b": "2"},
	}
	// One file of each kind. Only one of their directories is listed.
	files = fstest.MapFS{
		"usr/bin/tool": {Data: []byte("program"), Mode: fs.ModeSetuid | 0o755, ModTime: time.Unix(1e9, 0)},
		"bin":          {Data: []byte("usr/bin"), Mode: fs.ModeSymlink | 0o777},
		"etc/motd":     {Data: []byte("hello"), Mode: 0o644},
		"usr":          {Mode: fs.ModeDir | 0o700},
		"tmp":          {Mode: fs.ModeDir | fs.ModeSticky | 0o777},
	}
)

// sample returns a new image.
func sample(t *testing.T) v1.Image {
	t.Helper()
	image, err := Image(files, gzip.NoCompression, v1.ConfigFile{Architecture: "arm64", Created: v1.Time{Time: day}, Config: config})
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func TestTar(t *testing.T) {
	var written bytes.Buffer
	if err := Tar(&written, files, day); err != nil {
		t.Fatal(err)
	}
	want := []tar.Header{
		{Name: "bin", Typeflag: tar.TypeSymlink, Linkname: "usr/bin", Mode: 0o777},
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "etc/motd", Typeflag: tar.TypeReg, Mode: 0o644, Size: 5},
		{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777},
		{Name: "usr/", Typeflag: tar.TypeDir, Mode: 0o700},
		{Name: "usr/bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "usr/bin/tool", Typeflag: tar.TypeReg, Mode: 0o4755, Size: 7},
	}
	for i := range want {
		want[i].ModTime, want[i].Format = day.Local(), tar.FormatUSTAR
	}
	var got []tar.Header
	for r := tar.NewReader(&written); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, *header)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the archive contains\n%+v, want\n%+v", got, want)
	}
}

// The owner and the times of the files on disk do not matter.
func TestTarOfADirectory(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := errors.Join(os.WriteFile(file, []byte("content"), 0o640), os.Symlink("/nowhere", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	var first, second bytes.Buffer
	if err := Tar(&first, os.DirFS(dir), day); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Lchown(file, 7, 8), os.Chtimes(file, day, day)); err != nil {
		t.Fatal(err)
	}
	if err := Tar(&second, os.DirFS(dir), day); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("another owner and time gave another archive")
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Tar(io.Discard, os.DirFS(dir), day); err == nil || !strings.Contains(err.Error(), "pipe") {
		t.Errorf("a pipe gave error %v, want one that names it", err)
	}
}

func TestSameImageSameBytes(t *testing.T) {
	dir := t.TempDir()
	var archives [][]byte
	for _, file := range []string{"first", "second"} {
		if err := Write(filepath.Join(dir, file), sample(t), tags...); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		archives = append(archives, content)
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("two archives of one image differ")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("the directory contains %v (%v), want the two archives alone", left, err)
	}
}

// TestLayout reads an archive as an OCI layout.
func TestLayout(t *testing.T) {
	image := sample(t)
	index, err := layout.ImageIndexFromPath(unpacked(t, archived(t, image)))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, line := range manifest.Manifests {
		if line.Digest != digest || line.MediaType != types.OCIManifestSchema1 || line.Platform.String() != "linux/arm64" {
			t.Errorf("the index has %+v, want an OCI manifest with digest %s for linux/arm64", line, digest)
		}
		names = append(names, line.Annotations["io.containerd.image.name"])
	}
	if !slices.Equal(names, tags) {
		t.Errorf("the index names %q, want %q", names, tags)
	}
	read, err := index.Image(digest)
	if err != nil {
		t.Fatal(err)
	}
	found, err := read.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(found.Config, config) || !found.Created.Equal(day) {
		t.Errorf("the config is %+v, want %+v of %s", found, config, day)
	}
}

// TestDocker reads an archive as docker save writes it.
func TestDocker(t *testing.T) {
	image := sample(t)
	file := archived(t, image)
	for _, tag := range tags {
		parsed, err := name.NewTag(tag)
		if err != nil {
			t.Fatal(err)
		}
		read, err := tarball.ImageFromPath(file, &parsed)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Image(read); err != nil {
			t.Errorf("%s: %v", tag, err)
		}
		want, err := image.ConfigName()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := read.ConfigName(); err != nil || got != want {
			t.Errorf("%s has the config %s (%v), want %s", tag, got, err, want)
		}
	}
}

func TestNamesRefused(t *testing.T) {
	for _, test := range []struct {
		name, want string
		names      []string
	}{
		{"none", "no name", nil},
		{"no registry", "registry", []string{"debian:12"}},
		{"no tag", "tag", []string{"localhost/debian"}},
		{"digest", "tag", []string{tags[0] + "@sha256:" + strings.Repeat("a", 64)}},
		{"capitals", "lowercase", []string{"localhost/Debian:12"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			err := Write(filepath.Join(dir, "image.tar"), sample(t), test.names...)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error %v, want one with %q", err, test.want)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
				t.Errorf("%v was left behind (%v)", left, err)
			}
		})
	}
}

// archived returns the path of an archive of the image.
func archived(t *testing.T, image v1.Image) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := Write(file, image, tags...); err != nil {
		t.Fatal(err)
	}
	return file
}

// unpacked returns a directory with the unpacked archive.
func unpacked(t *testing.T, file string) string {
	t.Helper()
	content, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	found := fstest.MapFS{}
	for r := tar.NewReader(content); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		found[strings.TrimSuffix(header.Name, "/")] = &fstest.MapFile{Data: data, Mode: header.FileInfo().Mode()}
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, found); err != nil {
		t.Fatal(err)
	}
	return dir
}
