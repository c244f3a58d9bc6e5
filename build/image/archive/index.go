package archive

import (
	"archive/tar"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Read returns the image of an archive that [Write] wrote. It unpacks the archive into
// dir, which has to be there as long as the image is used.
func Read(file, dir string) (v1.Image, error) {
	image, err := read(file, dir)
	if err != nil {
		return nil, fmt.Errorf("read image %s: %w", file, err)
	}
	return image, nil
}

func read(file, dir string) (v1.Image, error) {
	if err := untar(file, dir); err != nil {
		return nil, err
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(manifest.Manifests) == 0 {
		return nil, errors.New("it holds none")
	}
	return index.Image(manifest.Manifests[0].Digest) // the others are the same, by other names
}

// untar unpacks files and directories. A path cannot leave the directory.
func untar(file, dir string) error {
	from, err := os.Open(file)
	if err != nil {
		return err
	}
	defer from.Close()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // what was written is closed
	for r := tar.NewReader(from); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := extract(root, header, r); err != nil {
			return fmt.Errorf("%s: %w", header.Name, err)
		}
	}
}

func extract(root *os.Root, header *tar.Header, content io.Reader) error {
	name := filepath.FromSlash(header.Name)
	switch header.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(filepath.Clean(name), 0o755)
	case tar.TypeReg:
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		to, err := root.Create(name)
		if err != nil {
			return err
		}
		_, err = io.Copy(to, content)
		return errors.Join(err, to.Close())
	}
	return fmt.Errorf("a file or a directory is wanted, not type %q", header.Typeflag)
}

// Index returns the OCI index of images for several architectures. Their order does not
// matter.
func Index(annotations map[string]string, images ...v1.Image) (v1.ImageIndex, error) {
	var members []mutate.IndexAddendum
	for _, image := range images {
		config, err := image.ConfigFile()
		if err != nil {
			return nil, err
		}
		platform := &v1.Platform{OS: config.OS, Architecture: config.Architecture}
		if slices.ContainsFunc(members, func(m mutate.IndexAddendum) bool { return m.Platform.Equals(*platform) }) {
			return nil, fmt.Errorf("two images are for %s", platform)
		}
		members = append(members, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: platform}})
	}
	slices.SortFunc(members, func(a, b mutate.IndexAddendum) int { return cmp.Compare(a.Platform.String(), b.Platform.String()) })
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), members...)
	return mutate.Annotations(index, annotations).(v1.ImageIndex), nil
}

// WriteLayout writes an index and all it names into an OCI image layout, a new directory.
func WriteLayout(dir string, index v1.ImageIndex) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	written, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return written.AppendIndex(index)
}

// ReadLayout returns the index of a layout that [WriteLayout] wrote.
func ReadLayout(dir string) (v1.ImageIndex, error) {
	outer, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	manifest, err := outer.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(manifest.Manifests) != 1 {
		return nil, fmt.Errorf("layout %s holds %d images; one index is wanted", dir, len(manifest.Manifests))
	}
	return outer.ImageIndex(manifest.Manifests[0].Digest)
}
