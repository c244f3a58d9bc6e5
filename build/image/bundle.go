package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"github.com/btrfs-csi/btrfs-csi/build/image/archive"
	"github.com/btrfs-csi/btrfs-csi/build/image/debian"
)

// bundle puts together what a release publishes, from a checkout in which make image-all
// has been run: see docs/verify.md for the files.
type bundle struct {
	source, version, image string // the checkout, and what make image-all was run for
	output                 string // directory of the files; the image goes beside it
	toolchain              string // what the driver was built with
	helm, gomod            string // programs
}

func bundleCommand() *cobra.Command {
	var b bundle
	c := &cobra.Command{
		Use:   "bundle",
		Short: "Put together the files of a release, and the index of its images",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return b.run(c.Context()) },
	}
	c.Flags().StringVar(&b.source, "source", "", "checkout with what make image-all builds")
	c.Flags().StringVar(&b.version, "version", "", "version of the driver")
	c.Flags().StringVar(&b.image, "name", "", "whole name of the image, with a tag")
	c.Flags().StringVar(&b.output, "output", "", "directory to write, anew; the image becomes an OCI image layout in a directory with -image at its end")
	c.Flags().StringVar(&b.toolchain, "toolchain", "", "directory of the toolchain that the driver was built with")
	c.Flags().StringVar(&b.helm, "helm", "helm", "the program helm")
	c.Flags().StringVar(&b.gomod, "gomod", "cyclonedx-gomod", "the program cyclonedx-gomod")
	required(c, "source", "version", "name", "output", "toolchain")
	return c
}

func (b bundle) run(ctx context.Context) error {
	for _, dir := range []string{b.output, b.layout()} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(b.output, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "bundle.*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := errors.Join(b.copies(), b.chart(ctx, filepath.Join(work, "chart"))); err != nil {
		return err
	}
	var archives []string
	for _, t := range targets {
		archives = append(archives, b.file("btrfs-csi-image-"+t.arch+".tar"))
	}
	images, err := readAll(filepath.Join(work, "images"), archives)
	if err != nil {
		return err
	}
	if err := b.index(images); err != nil {
		return err
	}
	for i, t := range targets {
		if err := b.bom(ctx, t, images[i], filepath.Join(work, t.arch+".json")); err != nil {
			return err
		}
	}
	return b.checksums()
}

func (b bundle) file(name string) string { return filepath.Join(b.output, name) }

func (b bundle) layout() string { return b.output + "-image" }

func (b bundle) write(name, line string) error {
	return os.WriteFile(b.file(name), []byte(line+"\n"), 0o644)
}

// copies takes over what make has built already.
func (b bundle) copies() error {
	for _, t := range targets {
		for from, to := range map[string]file{
			filepath.Join("bin", "btrfs-csi-"+t.arch):                                          {path: "btrfs-csi-linux-" + t.arch, mode: 0o755},
			filepath.Join("dist", fmt.Sprintf("btrfs-csi-image-%s-%s.tar", b.version, t.arch)): {path: "btrfs-csi-image-" + t.arch + ".tar", mode: 0o644},
		} {
			to.source = filepath.Join(b.source, from)
			if err := to.place(b.output); err != nil {
				return err
			}
		}
	}
	return nil
}

// index writes the index of the images, and all digests.
func (b bundle) index(images []v1.Image) error {
	index, err := indexOf(images)
	if err != nil {
		return err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for _, image := range manifest.Manifests {
		if err := b.write("btrfs-csi-image-"+image.Platform.Architecture+".digest", image.Digest.String()); err != nil {
			return err
		}
	}
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	if err := b.write("btrfs-csi-image.digest", digest.String()); err != nil {
		return err
	}
	if err := report(index); err != nil {
		return err
	}
	return archive.WriteLayout(b.layout(), index)
}

// bom writes the bill of materials of one image.
func (b bundle) bom(ctx context.Context, t target, image v1.Image, modules string) error {
	list := exec.CommandContext(ctx, b.gomod, "bin", "-json", "-licenses", "-std", "-noserial", "-short-purls", "-version", b.version, "-output", modules, b.file("btrfs-csi-linux-"+t.arch))
	if _, err := debian.Output(list); err != nil {
		return err
	}
	content, err := os.Open(modules)
	if err != nil {
		return err
	}
	defer content.Close()
	var found cdx.BOM
	if err := cdx.NewBOMDecoder(content, cdx.BOMFileFormatJSON).Decode(&found); err != nil {
		return fmt.Errorf("%s: %w", modules, err)
	}
	tag, err := name.NewTag(b.image, name.StrictValidation)
	if err != nil {
		return err
	}
	bom, err := imageBOM(&found, image, tag.Context().Name(), toolchain{b.toolchain})
	if err != nil {
		return err
	}
	out, err := os.Create(b.file("btrfs-csi-image-" + t.arch + ".cdx.json"))
	if err != nil {
		return err
	}
	return errors.Join(cdx.NewBOMEncoder(out, cdx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(bom, cdx.SpecVersion1_6), out.Close())
}

// chart packs the chart. A package keeps the times of its files, which become that of
// the source.
func (b bundle) chart(ctx context.Context, work string) error {
	at, err := sourceDate()
	if err != nil {
		return err
	}
	chart := filepath.Join(work, "btrfs-csi")
	if err := os.CopyFS(chart, os.DirFS(filepath.Join(b.source, "charts", "btrfs-csi"))); err != nil {
		return err
	}
	err = filepath.WalkDir(chart, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chtimes(path, time.Time{}, at))
	})
	if err != nil {
		return err
	}
	pack := exec.CommandContext(ctx, b.helm, "package", "--destination", b.output, chart)
	pack.Env = append(os.Environ(), "HELM_CACHE_HOME="+work, "HELM_CONFIG_HOME="+work, "HELM_DATA_HOME="+work)
	_, err = debian.Output(pack)
	return err
}

// checksums writes the SHA-256 of every file, as sha256sum --check reads it.
func (b bundle) checksums() error {
	entries, err := os.ReadDir(b.output)
	if err != nil {
		return err
	}
	var lines []string
	for _, entry := range entries {
		content, err := os.ReadFile(b.file(entry.Name()))
		if err != nil {
			return err
		}
		lines = append(lines, sha256Hex(content)+"  "+entry.Name())
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[sha256.Size*2:], b[sha256.Size*2:]) })
	return b.write("SHA256SUMS", strings.Join(lines, "\n"))
}

func sha256Hex(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}
