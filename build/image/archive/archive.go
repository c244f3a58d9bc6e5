// Package archive writes a container image to a file that `ctr images import`,
// `docker load` and `podman load` can read.
//
// The file is an OCI image layout. Its index.json has an entry for each name of the
// image. It also contains the manifest.json of Docker, because older releases of
// docker load read nothing else. The same image gives the same bytes.
package archive

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Image returns an OCI image for Linux with one layer, which contains the files. The config
// sets the architecture, and the time of everything in the image.
func Image(files fs.FS, compression int, config v1.ConfigFile) (v1.Image, error) {
	var content bytes.Buffer
	if err := Tar(&content, files, config.Created.Time); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(compression), tarball.WithCompressedCaching)
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), layer)
	if err != nil {
		return nil, err
	}
	made, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config.OS, config.RootFS = "linux", made.RootFS
	return mutate.ConfigFile(image, &config)
}

// Write writes an image to a file, which appears when it is complete. An import of the file
// gives the image each of the names.
func Write(file string, image v1.Image, names ...string) error {
	if err := write(file, image, names); err != nil {
		return fmt.Errorf("write image %s: %w", file, err)
	}
	return nil
}

func write(file string, image v1.Image, names []string) error {
	if len(names) == 0 {
		return errors.New("the image has no name")
	}
	for _, name := range names {
		if err := checkName(name); err != nil {
			return fmt.Errorf("name %q: %w", name, err)
		}
	}
	config, err := image.ConfigFile()
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(file), filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	dir, part := filepath.Join(work, "layout"), filepath.Join(work, "archive")
	if err := writeLayout(dir, image, config.Platform(), names); err != nil {
		return err
	}
	out, err := os.Create(part)
	if err != nil {
		return err
	}
	if err := errors.Join(Tar(out, os.DirFS(dir), config.Created.Time), out.Close()); err != nil {
		return err
	}
	return os.Rename(part, file)
}

// checkName refuses a name that an import would complete: users would not find the image under
// the name that they gave. The package name of go-containerregistry takes localhost/image for
// an image of Docker Hub.
func checkName(name string) error {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return err
	}
	_, tagged := named.(reference.NamedTagged)
	_, digested := named.(reference.Digested)
	if !tagged || digested || named.String() != name {
		return errors.New("a registry, a path and a tag are needed, as in docker.io/library/debian:12")
	}
	return nil
}

// writeLayout writes a directory with the layout and the manifest of Docker. containerd reads
// the name from an annotation of its own, because the OCI annotation is often only the tag.
func writeLayout(dir string, image v1.Image, platform *v1.Platform, names []string) error {
	index := v1.ImageIndex(empty.Index)
	for _, name := range names {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{
			Platform:    platform,
			Annotations: map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name},
		}})
	}
	written, err := layout.Write(dir, index)
	if err != nil {
		return err
	}
	manifest, err := image.Manifest()
	if err != nil {
		return err
	}
	docker := tarball.Descriptor{Config: blob(manifest.Config), RepoTags: names}
	for _, layer := range manifest.Layers {
		docker.Layers = append(docker.Layers, blob(layer))
	}
	content, err := json.Marshal(tarball.Manifest{docker})
	if err != nil {
		return err
	}
	return written.WriteFile("manifest.json", content, 0o644)
}

// blob returns the path of a blob in the layout.
func blob(d v1.Descriptor) string { return path.Join("blobs", d.Digest.Algorithm, d.Digest.Hex) }
