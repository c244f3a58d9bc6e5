//go:build release

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/xeipuuv/gojsonschema"

	"github.com/btrfs-csi/btrfs-csi/build/image/archive"
	"github.com/btrfs-csi/btrfs-csi/build/image/debian"
)

// The tests in this file look at what make release and make release-dry-run have built.

const releaseDir = "../../dist/release"

func released(t *testing.T, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(releaseDir, name))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func version(t *testing.T) string {
	t.Helper()
	v := os.Getenv("RELEASE_VERSION")
	if v == "" {
		t.Fatal("RELEASE_VERSION is not set; make release-dry-run sets it")
	}
	return v
}

func TestReleaseHasEveryFile(t *testing.T) {
	var chart string
	entries, err := os.ReadDir(releaseDir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), ".tgz") {
			chart = entry.Name()
			continue
		}
		got = append(got, entry.Name())
	}
	want := []string{"SHA256SUMS", "btrfs-csi-image.digest"}
	for _, target := range targets {
		want = append(want, "btrfs-csi-linux-"+target.arch)
		for _, suffix := range []string{".tar", ".digest", ".cdx.json"} {
			want = append(want, "btrfs-csi-image-"+target.arch+suffix)
		}
	}
	slices.Sort(want)
	if !slices.Equal(got, want) || chart == "" {
		t.Errorf("the release has %q and chart %q, want %q and a chart", got, chart, want)
	}
}

// TestReleaseChecksums has sha256sum check what users check, and every file be on the list.
func TestReleaseChecksums(t *testing.T) {
	check := exec.CommandContext(t.Context(), "sha256sum", "--check", "--strict", "SHA256SUMS")
	check.Dir = releaseDir
	out, err := check.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	entries, err := os.ReadDir(releaseDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.Name() != "SHA256SUMS" && !strings.Contains(string(out), entry.Name()+": OK\n") {
			t.Errorf("%s is not on the list", entry.Name())
		}
	}
}

func TestReleaseBinaries(t *testing.T) {
	for _, target := range targets {
		file := filepath.Join(releaseDir, "btrfs-csi-linux-"+target.arch)
		if libraries, loader, err := target.needs(file); err != nil || len(libraries) > 0 || loader != "" {
			t.Errorf("%s loads %q and %q (%v); it should be static", file, libraries, loader, err)
		}
		info, err := buildinfo.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		settings := map[string]string{}
		for _, s := range info.Settings {
			settings[s.Key] = s.Value
		}
		for key, want := range map[string]string{"CGO_ENABLED": "1", "GOARCH": target.arch, "GOOS": "linux", "-trimpath": "true"} {
			if settings[key] != want {
				t.Errorf("%s was built with %s=%q, want %q", file, key, settings[key], want)
			}
		}
		if target.arch != runtime.GOARCH {
			continue
		}
		out, err := exec.CommandContext(t.Context(), file, "version").Output()
		if err != nil || !strings.Contains(string(out), version(t)) {
			t.Errorf("%s version printed %q (%v), want %s in it", file, out, err, version(t))
		}
	}
}

// releasedImages returns the images of the index, by architecture.
func releasedImages(t *testing.T) (v1.ImageIndex, map[string]v1.Image) {
	t.Helper()
	index, err := archive.ReadLayout(releaseDir + "-image")
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	images := map[string]v1.Image{}
	for _, line := range manifest.Manifests {
		if images[line.Platform.Architecture], err = index.Image(line.Digest); err != nil {
			t.Fatal(err)
		}
	}
	return index, images
}

// TestReleaseIndex follows the index to the binary in each image.
func TestReleaseIndex(t *testing.T) {
	index, images := releasedImages(t)
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	digest, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if got := string(released(t, "btrfs-csi-image.digest")); got != digest.String()+"\n" {
		t.Errorf("btrfs-csi-image.digest is %q, the index has %s", got, digest)
	}
	if len(images) != len(targets) {
		t.Errorf("the index has %d images, want one for each of %v", len(images), targets)
	}
	for _, target := range targets {
		image := images[target.arch]
		digest, err := image.Digest()
		if err != nil {
			t.Fatal(err)
		}
		if got := string(released(t, "btrfs-csi-image-"+target.arch+".digest")); got != digest.String()+"\n" {
			t.Errorf("btrfs-csi-image-%s.digest is %q, the image has %s", target.arch, got, digest)
		}
		packed, err := archive.Read(filepath.Join(releaseDir, "btrfs-csi-image-"+target.arch+".tar"), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := packed.Digest(); err != nil || got != digest {
			t.Errorf("the archive for %s holds %s (%v), the index %s", target.arch, got, err, digest)
		}
		files, err := imageFiles(image, func(name string) bool { return name == driverPath[1:] })
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(files[driverPath[1:]], released(t, "btrfs-csi-linux-"+target.arch)) {
			t.Errorf("the driver in the image for %s is not the binary of the release", target.arch)
		}
	}
}

// TestReleaseBills holds each bill of materials against CycloneDX' schema, and against
// what is in the binary and the image.
func TestReleaseBills(t *testing.T) {
	_, images := releasedImages(t)
	schema := schemaOf(t)
	for _, target := range targets {
		content := released(t, "btrfs-csi-image-"+target.arch+".cdx.json")
		result, err := schema.Validate(gojsonschema.NewBytesLoader(content))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range result.Errors() {
			t.Errorf("%s: the schema says: %s", target.arch, e)
		}
		var bom cdx.BOM
		if err := json.Unmarshal(content, &bom); err != nil {
			t.Fatal(err)
		}
		urls := map[string]bool{}
		for _, c := range *bom.Components {
			if urls[c.PackageURL] {
				t.Errorf("%s: %s is there twice", target.arch, c.PackageURL)
			}
			urls[c.PackageURL] = true
		}
		for _, want := range append(modulesOf(t, target), recordsOf(t, images[target.arch])...) {
			if !slices.ContainsFunc(*bom.Components, func(c cdx.Component) bool { return c.Name+"@"+c.Version == want }) {
				t.Errorf("%s: the bill lacks %s", target.arch, want)
			}
		}
		if linked := *(*bom.Components)[0].Components; len(linked) != 1 || !strings.HasPrefix(linked[0].Name, "libc6-dev") || len(*linked[0].Properties) < 3 {
			t.Errorf("%s: of C the driver has %+v, want a library, and the compiler as its property", target.arch, linked)
		}
		for _, d := range *bom.Dependencies {
			if d.Ref != bom.Metadata.Component.BOMRef && !slices.ContainsFunc(*bom.Components, func(c cdx.Component) bool { return c.BOMRef == d.Ref }) {
				t.Errorf("%s: dependencies of %s, which is no component", target.arch, d.Ref)
			}
		}
	}
}

func schemaOf(t *testing.T) *gojsonschema.Schema {
	t.Helper()
	dir, err := debian.Output(exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/CycloneDX/cyclonedx-go"))
	if err != nil {
		t.Fatal(err)
	}
	loader := gojsonschema.NewSchemaLoader()
	for url, file := range map[string]string{
		"http://cyclonedx.org/schema/spdx.schema.json":     "spdx.schema.json",
		"http://cyclonedx.org/schema/jsf-0.82.schema.json": "jsf-0.82.schemax.json",
	} {
		if err := loader.AddSchema(url, gojsonschema.NewReferenceLoader("file://"+path.Join(strings.TrimSpace(dir), "schema", file))); err != nil {
			t.Fatal(err)
		}
	}
	schema, err := loader.Compile(gojsonschema.NewReferenceLoader("file://" + path.Join(strings.TrimSpace(dir), "schema", "bom-1.6.schema.json")))
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// modulesOf returns the modules that the linker says are in a binary.
func modulesOf(t *testing.T, target target) []string {
	t.Helper()
	info, err := buildinfo.ReadFile(filepath.Join(releaseDir, "btrfs-csi-linux-"+target.arch))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, m := range info.Deps {
		found = append(found, m.Path+"@"+m.Version)
	}
	return append(found, "std@"+info.GoVersion)
}

// recordsOf returns the packages that an image records.
func recordsOf(t *testing.T, image v1.Image) []string {
	t.Helper()
	files, err := imageFiles(image, func(name string) bool { return path.Dir(name) == records })
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^Version: (\S+)$`)
	var found []string
	for name, content := range files {
		found = append(found, path.Base(name)+"@"+string(version.FindSubmatch(content)[1]))
	}
	if len(found) < 10 {
		t.Errorf("the image records only %v", found)
	}
	return found
}

// TestReleaseChart unpacks the chart, which has to be the one of the source, and the same
// each time.
func TestReleaseChart(t *testing.T) {
	found, err := filepath.Glob(filepath.Join(releaseDir, "*.tgz"))
	if err != nil || len(found) != 1 {
		t.Fatalf("the charts are %q (%v), want one", found, err)
	}
	packed, err := os.Open(found[0])
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	unzipped, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	times := map[string]bool{}
	files := 0
	for r := tar.NewReader(unzipped); ; files++ {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		times[header.ModTime.String()] = true
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		source, err := os.ReadFile(filepath.Join("..", "..", "charts", header.Name))
		if err != nil || path.Base(header.Name) != "Chart.yaml" && !bytes.Equal(source, content) { // helm writes Chart.yaml in an order of its own
			t.Errorf("%s is not as in the source (%v)", header.Name, err)
		}
	}
	if files < 20 || len(times) != 1 {
		t.Errorf("the chart has %d files of %d times, want all of it with one time", files, len(times))
	}
}

// TestReleaseNotes has the script for the notes of a release refuse what is no release.
func TestReleaseNotes(t *testing.T) {
	for tag, wanted := range map[string]string{"v99.0.0": "Chart.yaml", "": "Chart.yaml"} {
		out, err := exec.CommandContext(context.Background(), "../../hack/release-notes.sh", tag).CombinedOutput()
		if err == nil || !strings.Contains(string(out), wanted) {
			t.Errorf("tag %q: got %q (%v), want an error with %q", tag, out, err, wanted)
		}
	}
	chart, err := os.ReadFile("../../charts/btrfs-csi/Chart.yaml")
	if err != nil {
		t.Fatal(err)
	}
	tag := regexp.MustCompile(`(?m)^appVersion: (\S+)$`).FindSubmatch(chart)
	out, err := exec.CommandContext(t.Context(), "../../hack/release-notes.sh", string(tag[1])).Output()
	if err != nil || !strings.Contains(string(out), "\n- ") {
		t.Errorf("the notes of %s are %q (%v), want a list", tag[1], out, err)
	}
	if fmt.Sprint(string(out)) == "" || strings.Contains(string(out), "\n## ") {
		t.Errorf("the notes of %s go on into another version", tag[1])
	}
}
