package oci

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	_ "crypto/sha256" // go-digest leaves the import to its users
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is what an archive holds.
type Image struct {
	// Names are whole, like ghcr.io/btrfs-csi/btrfs-csi:v1.0: with a registry, a
	// tag and no digest. Each becomes an image where the archive is imported.
	Names        []string
	Architecture string // as Go calls it
	Files        []File

	Entrypoint, Cmd, Env []string // Env is a list of NAME=value
	User, WorkingDir     string
	Labels               map[string]string

	// Uncompressed saves the time of compressing what stays on this machine.
	Uncompressed bool
}

// Result tells of an archive that was written. Sizes are in bytes.
type Result struct {
	Digest   string // of the manifest: what the image is pinned by
	Size     int64  // of the layer as it is stored and pulled
	Unpacked int64  // of all files
}

// WriteArchive writes the image to a file, which appears when it is whole.
func (image Image) WriteArchive(file string) (Result, error) {
	result, err := image.writeArchive(file)
	if err != nil {
		return Result{}, fmt.Errorf("write image %s: %w", file, err)
	}
	return result, nil
}

func (image Image) writeArchive(file string) (Result, error) {
	created, err := sourceDate()
	if err != nil {
		return Result{}, err
	}
	if err := image.check(); err != nil {
		return Result{}, err
	}
	layer, err := image.writeLayer(filepath.Dir(file), created)
	if err != nil {
		return Result{}, err
	}
	defer os.Remove(layer.file)

	out, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*")
	if err != nil {
		return Result{}, err
	}
	defer os.Remove(out.Name()) // gone already, if all went well
	defer out.Close()
	manifest, err := image.writeLayout(out, layer, created)
	if err != nil {
		return Result{}, err
	}
	if err := errors.Join(out.Chmod(0o644), out.Close()); err != nil {
		return Result{}, err
	}
	return Result{manifest.String(), layer.size, layer.unpacked}, os.Rename(out.Name(), file)
}

// sourceDate is the one time of everything in an image: see
// https://reproducible-builds.org/specs/source-date-epoch.
func sourceDate() (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	seconds, err := strconv.ParseInt(cmp.Or(text, "0"), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH is %q; the seconds since 1970 are wanted", text)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// check refuses what would be imported and then not found.
func (image Image) check() error {
	if image.Architecture == "" {
		return errors.New("the architecture is not told")
	}
	if len(image.Names) == 0 {
		return errors.New("the image has no name")
	}
	for _, name := range image.Names {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return fmt.Errorf("name %q: %w", name, err)
		}
		_, tagged := named.(reference.NamedTagged)
		_, digested := named.(reference.Digested)
		if !tagged || digested || named.String() != name {
			return fmt.Errorf("name %q: registry, path and tag are wanted, as in %s", name, "docker.io/library/debian:12")
		}
	}
	return nil
}

// writtenLayer is a layer in a file of its own: its digest is its name in the
// archive, and known only at its end.
type writtenLayer struct {
	file           string
	size, unpacked int64
	digest         digest.Digest // as it is stored
	diffID         digest.Digest // as it is uncompressed
}

// writeLayer writes the files of the image into a new file in a directory.
func (image Image) writeLayer(dir string, modified time.Time) (layer writtenLayer, err error) {
	files, err := arrange(image.Files)
	if err != nil {
		return layer, err
	}
	out, err := os.CreateTemp(dir, "layer.*")
	if err != nil {
		return layer, err
	}
	layer.file = out.Name()
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			os.Remove(layer.file) //nolint:errcheck // nobody is left to tell
		}
	}()
	stored, plain := digest.Canonical.Digester(), digest.Canonical.Digester()
	var compressed io.WriteCloser = nopCloser{io.MultiWriter(out, stored.Hash())}
	if !image.Uncompressed {
		compressed = gzip.NewWriter(compressed)
	}
	entries := tar.NewWriter(io.MultiWriter(compressed, plain.Hash()))
	for _, f := range files {
		n, err := f.append(entries, modified)
		if err != nil {
			return layer, fmt.Errorf("%s: %w", f.Path, err)
		}
		layer.unpacked += n
	}
	if err := errors.Join(entries.Close(), compressed.Close()); err != nil {
		return layer, err
	}
	layer.digest, layer.diffID = stored.Digest(), plain.Digest()
	layer.size, err = out.Seek(0, io.SeekCurrent)
	return layer, err
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// layout writes an OCI image layout as a tar archive. The first error stays, and
// what follows it does nothing.
type layout struct {
	tar      *tar.Writer
	modified time.Time
	err      error
}

// writeLayout writes the archive around a layer and returns the digest of the
// manifest.
func (image Image) writeLayout(out io.Writer, layer writtenLayer, created time.Time) (digest.Digest, error) {
	w := &layout{tar: tar.NewWriter(out), modified: created}
	w.json(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	w.file(blob(layer.digest), layer.file, layer.size)
	config := w.blob(ocispec.MediaTypeImageConfig, image.config(layer, created))
	manifest := w.blob(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config,
		Layers:    []ocispec.Descriptor{{MediaType: image.layerType(), Digest: layer.digest, Size: layer.size}},
	})
	manifest.Platform = &ocispec.Platform{OS: "linux", Architecture: image.Architecture}
	w.json(ocispec.ImageIndexFile, image.index(manifest))
	w.json("manifest.json", []dockerManifest{{blob(config.Digest), image.Names, []string{blob(layer.digest)}}})
	if w.err == nil {
		w.err = w.tar.Close()
	}
	return manifest.Digest, w.err
}

func (image Image) config(layer writtenLayer, created time.Time) ocispec.Image {
	return ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{OS: "linux", Architecture: image.Architecture},
		Config: ocispec.ImageConfig{
			User: image.User, WorkingDir: image.WorkingDir, Env: image.Env,
			Entrypoint: image.Entrypoint, Cmd: image.Cmd, Labels: image.Labels,
		},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.diffID}},
	}
}

func (image Image) layerType() string {
	if image.Uncompressed {
		return ocispec.MediaTypeImageLayer
	}
	return ocispec.MediaTypeImageLayerGzip
}

// index lists the manifest once for every name: an import makes an image of each
// line. containerd goes by its own annotation, since that of OCI is often the tag
// alone.
func (image Image) index(manifest ocispec.Descriptor) ocispec.Index {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, name := range image.Names {
		manifest.Annotations = map[string]string{
			"io.containerd.image.name": name,
			ocispec.AnnotationRefName:  name,
		}
		index.Manifests = append(index.Manifests, manifest)
	}
	return index
}

// dockerManifest is what older docker load wants in the place of the index.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// blob returns where something with a digest is.
func blob(d digest.Digest) string {
	return ocispec.ImageBlobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

// blob writes a value below its digest.
func (w *layout) blob(mediaType string, value any) ocispec.Descriptor {
	content := w.marshal(value)
	d := digest.FromBytes(content)
	w.entry(blob(d), bytes.NewReader(content), int64(len(content)))
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}
}

func (w *layout) json(name string, value any) {
	content := w.marshal(value)
	w.entry(name, bytes.NewReader(content), int64(len(content)))
}

func (w *layout) marshal(value any) []byte {
	content, err := json.Marshal(value)
	if w.err == nil {
		w.err = err
	}
	return content
}

func (w *layout) file(name, source string, size int64) {
	content, err := os.Open(source)
	if err != nil {
		w.err = cmp.Or(w.err, err)
		return
	}
	defer content.Close()
	w.entry(name, content, size)
}

func (w *layout) entry(name string, content io.Reader, size int64) {
	if w.err != nil {
		return
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: w.modified}
	if w.err = w.tar.WriteHeader(header); w.err == nil {
		_, w.err = io.Copy(w.tar, content)
	}
}
