package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/btrfs-csi/btrfs-csi/build/image/archive"
)

// imageFor returns an image with the records of two packages and a driver.
func imageFor(t *testing.T, arch string) v1.Image {
	t.Helper()
	files := fstest.MapFS{
		"usr/lib/os-release":      {Data: []byte("ID=debian\nVERSION_ID=\"12\"\n"), Mode: 0o644},
		records + "/mount":        {Data: []byte("Package: mount\nSource: util-linux\nVersion: 2.38.1-5+deb12u3\nArchitecture: " + arch + "\nMaintainer: M\nDescription: tools\n more\n"), Mode: 0o644},
		records + "/libgcc-s1":    {Data: []byte("Package: libgcc-s1\nSource: gcc-12 (12.2.0-14)\nVersion: 1:12.2.0-14\nArchitecture: " + arch + "\nHomepage: http://gcc.example\nDescription: lib\n"), Mode: 0o644},
		"usr/local/bin/btrfs-csi": {Data: []byte("driver for " + arch), Mode: 0o755},
	}
	image, err := archive.Image(files, gzip.NoCompression, v1.ConfigFile{
		Architecture: arch, Created: v1.Time{Time: time.Unix(86400, 0).UTC()}, Config: release{version: "v1.2.3"}.config(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func digestOf(t *testing.T, of interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	digest, err := of.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.String()
}

// TestIndex makes one of archives, in any order, and compares digests with it.
func TestIndex(t *testing.T) {
	dir := t.TempDir()
	var archives []string
	for _, arch := range []string{"amd64", "arm64"} {
		file := filepath.Join(dir, arch)
		if err := archive.Write(file, imageFor(t, arch), "localhost/image:1"); err != nil {
			t.Fatal(err)
		}
		archives = append(archives, file)
	}
	made := func(archives ...string) v1.ImageIndex {
		images, err := readAll(t.TempDir(), archives)
		if err != nil {
			t.Fatal(err)
		}
		index, err := indexOf(images)
		if err != nil {
			t.Fatal(err)
		}
		return index
	}
	index := made(archives...)
	if other := made(archives[1], archives[0]); digestOf(t, index) != digestOf(t, other) {
		t.Error("another order of the archives gave another index")
	}
	for _, digest := range []string{digestOf(t, index), digestOf(t, imageFor(t, "amd64")), digestOf(t, imageFor(t, "arm64"))} {
		if err := expect(digest, index); err != nil {
			t.Error(err)
		}
	}
	err := expect("sha256:"+strings.Repeat("0", 64), index)
	if err == nil || !strings.Contains(err.Error(), digestOf(t, index)) || !strings.Contains(err.Error(), digestOf(t, imageFor(t, "arm64"))) {
		t.Errorf("a digest of nobody gave error %v, want one with all digests", err)
	}
	images, err := readAll(t.TempDir(), []string{archives[0], archives[0]})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := indexOf(images); err == nil || !strings.Contains(err.Error(), "linux/amd64") {
		t.Errorf("two images for one architecture gave error %v", err)
	}
}

// TestPush pushes to a registry on this machine, and reads from it what a node would pull.
func TestPush(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	at := strings.TrimPrefix(server.URL, "http://") + "/btrfs-csi/btrfs-csi:v1.2.3"
	index, err := indexOf([]v1.Image{imageFor(t, "amd64"), imageFor(t, "arm64")})
	if err != nil {
		t.Fatal(err)
	}
	layout := filepath.Join(t.TempDir(), "layout")
	if err := archive.WriteLayout(layout, index); err != nil {
		t.Fatal(err)
	}
	if err := (push{layout: layout, wanted: "sha256:no", names: []string{at}}).run(); err == nil {
		t.Error("another digest than the expected one was pushed")
	}
	if err := (push{layout: layout, wanted: digestOf(t, index), names: []string{at}}).run(); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(at)
	if err != nil {
		t.Fatal(err)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		pulled, err := remote.Image(tag, remote.WithPlatform(v1.Platform{OS: "linux", Architecture: arch}))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := digestOf(t, pulled), digestOf(t, imageFor(t, arch)); got != want {
			t.Errorf("a node of %s pulls %s, want %s", arch, got, want)
		}
	}
}

func TestImageBOM(t *testing.T) {
	modules := &cdx.BOM{
		Metadata:     &cdx.Metadata{Component: &cdx.Component{Type: cdx.ComponentTypeApplication, BOMRef: "driver", Name: "driver"}},
		Components:   &[]cdx.Component{{Type: cdx.ComponentTypeLibrary, BOMRef: "module", Name: "module", Version: "v1"}},
		Dependencies: &[]cdx.Dependency{{Ref: "driver", Dependencies: &[]string{"module"}}},
	}
	image := imageFor(t, "arm64")
	built := toolchain{t.TempDir()}
	list := "gcc-12 12.2\nlibc6-dev 2.36-9+deb12u14\nlibc6-dev-arm64-cross 2.36-8cross1\nzlib1g 1\n"
	if err := os.WriteFile(built.list(), []byte(list), 0o644); err != nil {
		t.Fatal(err)
	}
	bom, err := imageBOM(modules, image, "registry.example/btrfs-csi", built)
	if err != nil {
		t.Fatal(err)
	}
	if bom.Metadata.Timestamp != "1970-01-02T00:00:00Z" || bom.Metadata.Component.Version != "v1.2.3" {
		t.Errorf("the bill is of %s, for version %s", bom.Metadata.Timestamp, bom.Metadata.Component.Version)
	}
	var got []string
	for _, c := range *bom.Components {
		got = append(got, c.BOMRef)
	}
	want := []string{
		"driver",
		"pkg:deb/debian/libgcc-s1@1:12.2.0-14?arch=arm64&distro=debian-12&upstream=gcc-12%4012.2.0-14",
		"pkg:deb/debian/mount@2.38.1-5%2Bdeb12u3?arch=arm64&distro=debian-12&upstream=util-linux",
		"module",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the components are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if driver := (*bom.Components)[0]; driver.Version != "v1.2.3" || (*driver.Hashes)[0].Value != sha256Hex([]byte("driver for arm64")) {
		t.Errorf("the driver is %+v, want the version of the image and the hash of the file in it", driver)
	}
	linked := *(*bom.Components)[0].Components
	if len(linked) != 1 || linked[0].PackageURL != "pkg:deb/debian/libc6-dev-arm64-cross@2.36-8cross1?arch=amd64&distro=debian-12" ||
		!reflect.DeepEqual(*linked[0].Properties, []cdx.Property{{Name: "btrfs-csi:toolchain:gcc-12", Value: "12.2"}}) {
		t.Errorf("the driver has %+v of C, want the library for arm64, and what compiled it", linked)
	}
	dependencies, err := json.Marshal(bom.Dependencies)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(dependencies), `{"ref":"driver","dependsOn":["module"]}`) || len(*bom.Dependencies) != 2 || len(*(*bom.Dependencies)[0].Dependencies) != 3 {
		t.Errorf("the dependencies are %s", dependencies)
	}
}

func TestImageBOMRefuses(t *testing.T) {
	empty, err := archive.Image(fstest.MapFS{"usr/lib/os-release": {Data: []byte("ID=debian\n"), Mode: 0o644}}, gzip.NoCompression, v1.ConfigFile{Architecture: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	modules := &cdx.BOM{Metadata: &cdx.Metadata{Component: &cdx.Component{}}}
	if _, err := imageBOM(modules, empty, "r", toolchain{}); err == nil || !strings.Contains(err.Error(), "no package") {
		t.Errorf("an image without records gave error %v", err)
	}
}

func TestUntarStaysInItsDirectory(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "evil.tar")
	if err := os.WriteFile(file, tarOf(t, "../escaped"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := archive.Read(file, filepath.Join(dir, "into")); err == nil || !strings.Contains(err.Error(), "../escaped") {
		t.Errorf("got error %v, want one that names the path", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "escaped")); err == nil {
		t.Error("a file was written outside the directory")
	}
}

// tarOf returns an archive of one file.
func tarOf(t *testing.T, name string) []byte {
	t.Helper()
	var content bytes.Buffer
	w := tar.NewWriter(&content)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: 1, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := strings.NewReader("x").WriteTo(w); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return content.Bytes()
}
