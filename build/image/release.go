package main

import (
	"cmp"
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/btrfs-csi/btrfs-csi/build/image/archive"
)

// release is what an archive contains besides the root filesystem.
type release struct {
	names                      []string
	binary, license            string
	version, revision, archive string
}

// write writes the archive.
func (r release) write(t target, root string) error {
	libraries, loader, err := t.needs(r.binary)
	if err != nil {
		return err
	}
	if len(libraries) > 0 || loader != "" {
		return fmt.Errorf("%s loads %q; a static binary is wanted, as make build makes it", r.binary, append(libraries, loader))
	}
	created, err := sourceDate()
	if err != nil {
		return err
	}
	for _, f := range r.files() {
		if err := f.place(root); err != nil {
			return err
		}
	}
	image, err := archive.Image(os.DirFS(root), gzip.DefaultCompression,
		v1.ConfigFile{Architecture: t.arch, Created: v1.Time{Time: created}, Config: r.config()})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(r.archive), 0o755); err != nil {
		return err
	}
	if err := archive.Write(r.archive, image, r.names...); err != nil {
		return err
	}
	return r.report(image)
}

// report prints the digest and the size of the archive.
func (r release) report(image v1.Image) error {
	digest, err := image.Digest()
	if err != nil {
		return err
	}
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	size, err := layers[0].Size()
	if err != nil {
		return err
	}
	files, err := layers[0].Uncompressed()
	if err != nil {
		return err
	}
	unpacked, err := io.Copy(io.Discard, files)
	if err != nil {
		return err
	}
	fmt.Printf("%s\ndigest %s\nsize   %s compressed, %s unpacked\n", r.archive, digest, mega(size), mega(unpacked))
	return nil
}

// sourceDate is the time of everything in an image: see
// https://reproducible-builds.org/specs/source-date-epoch.
func sourceDate() (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	seconds, err := strconv.ParseInt(cmp.Or(text, "0"), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH is %q; the seconds since 1970 are wanted", text)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// file is a file of the image that is not from Debian.
type file struct {
	source, path string
	mode         fs.FileMode
}

// place copies the file into a root filesystem.
func (f file) place(root string) error {
	content, err := os.ReadFile(f.source)
	if err != nil {
		return err
	}
	to := filepath.Join(root, f.path)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, content, f.mode)
}

// driverPath is where the driver lies in the image.
const driverPath = "/usr/local/bin/btrfs-csi"

// files and config are the same as in the last stage of the Dockerfile.
func (r release) files() []file {
	return []file{
		{r.binary, driverPath, 0o755},
		{r.license, "/usr/share/doc/btrfs-csi/LICENSE", 0o644},
	}
}

func (r release) config() v1.Config {
	return v1.Config{
		Entrypoint: []string{driverPath},
		Cmd:        []string{"serve"},
		Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Labels: map[string]string{
			"org.opencontainers.image.title":       "btrfs-csi",
			"org.opencontainers.image.description": "Container Storage Interface driver for btrfs",
			"org.opencontainers.image.source":      "https://github.com/btrfs-csi/btrfs-csi",
			"org.opencontainers.image.licenses":    "Apache-2.0",
			"org.opencontainers.image.version":     cmp.Or(r.version, "dev"),
			"org.opencontainers.image.revision":    cmp.Or(r.revision, "unknown"),
		},
	}
}

// mega formats a size in MB.
func mega(bytes int64) string { return fmt.Sprintf("%.1f MB", float64(bytes)/1e6) }
