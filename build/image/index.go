package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/spf13/cobra"

	"github.com/btrfs-csi/btrfs-csi/build/image/archive"
)

// readAll returns the images of archives, which it unpacks below dir.
func readAll(dir string, archives []string) ([]v1.Image, error) {
	var images []v1.Image
	for i, file := range archives {
		image, err := archive.Read(file, filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			return nil, err
		}
		images = append(images, image)
	}
	return images, nil
}

// indexOf returns the index of the images. It says of itself what each of them says.
func indexOf(images []v1.Image) (v1.ImageIndex, error) {
	config, err := images[0].ConfigFile()
	if err != nil {
		return nil, err
	}
	return archive.Index(config.Config.Labels, images...)
}

// expect compares the digest that somebody published with what was built: with the
// index, and with each of its images. The error names all digests.
func expect(wanted string, index v1.ImageIndex) error {
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	if digest.String() == wanted {
		return nil
	}
	found := fmt.Sprintf("the index has %s", digest)
	for _, image := range manifest.Manifests {
		if image.Digest.String() == wanted {
			return nil
		}
		found += fmt.Sprintf(", %s %s", image.Platform, image.Digest)
	}
	return fmt.Errorf("%s is wanted, and was not built: %s", wanted, found)
}

// report prints the digests of an index and its images.
func report(index v1.ImageIndex) error {
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for _, image := range manifest.Manifests {
		fmt.Printf("%-12s %s\n", image.Platform, image.Digest)
	}
	fmt.Printf("%-12s %s\n", "index", digest)
	return nil
}

func indexCommand() *cobra.Command {
	var (
		archives []string
		wanted   string
	)
	c := &cobra.Command{
		Use:   "index",
		Short: "Print the digest of the index of archives, and compare it with a published one",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			dir, err := os.MkdirTemp("", "image-index.*")
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			images, err := readAll(dir, archives)
			if err != nil {
				return err
			}
			index, err := indexOf(images)
			if err != nil {
				return err
			}
			if err := report(index); err != nil || wanted == "" {
				return err
			}
			if err := expect(wanted, index); err != nil {
				return err
			}
			fmt.Printf("%s is what was built here\n", wanted)
			return nil
		},
	}
	c.Flags().StringArrayVar(&archives, "archive", nil, "archive of an image; repeated for each architecture")
	c.Flags().StringVar(&wanted, "expect", "", "digest of the index, or of one image, that has to come out")
	required(c, "archive")
	return c
}

// push pushes the index of a layout, and all it names, to a registry. The registry's
// credentials are those of docker login.
type push struct {
	layout, wanted string
	names          []string
	options        []remote.Option
}

func (p push) run() error {
	index, err := archive.ReadLayout(p.layout)
	if err != nil {
		return err
	}
	if err := expect(p.wanted, index); err != nil {
		return err
	}
	for _, text := range p.names {
		tag, err := name.NewTag(text, name.StrictValidation)
		if err != nil {
			return err
		}
		if err := remote.WriteIndex(tag, index, p.options...); err != nil {
			return fmt.Errorf("push %s: %w", tag, err)
		}
		fmt.Printf("%s is %s\n", tag, p.wanted)
	}
	return nil
}

func pushCommand() *cobra.Command {
	var p push
	c := &cobra.Command{
		Use:   "push",
		Short: "Push the index of a layout to a registry",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			p.options = []remote.Option{remote.WithContext(c.Context()), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
			return p.run()
		},
	}
	c.Flags().StringVar(&p.layout, "layout", "", "OCI image layout that bundle wrote")
	c.Flags().StringVar(&p.wanted, "expect", "", "digest that the index has to have")
	c.Flags().StringArrayVar(&p.names, "name", nil, "whole name of the image, with a tag; may be repeated")
	required(c, "layout", "expect", "name")
	return c
}
