package components

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// A Set is what a cluster is made of, built and complete. Its files may be mounted
// or copied elsewhere, but are not to be written to.
type Set struct {
	// Bin is a directory with all programs under their usual names. None is a
	// symbolic link, none needs a library, so it may be mounted anywhere.
	Bin string
	// Images are archives for `ctr images import`, one for each image and called
	// after it.
	Images []string
	// Repositories is the file for KUBE_TEST_REPO_LIST, which makes Kubernetes'
	// tests ask for our images. Only BuildSuite sets it.
	Repositories string
}

// Build builds what is missing of what a cluster runs, and reports it in the
// log. Where nothing is missing it returns at once. It is safe for many at once.
func Build(ctx context.Context, log io.Writer) (Set, error) {
	return build(ctx, log, false)
}

// BuildControlPlane builds what is missing of a cluster without nodes.
func BuildControlPlane(ctx context.Context, log io.Writer) (set Set, err error) {
	b, err := newBuilder(ctx, log)
	if err != nil {
		return Set{}, err
	}
	if err := b.buildAll(ctx, controlPlane); err != nil {
		return Set{}, err
	}
	set.Bin, err = b.link(ctx)
	return set, err
}

// BuildSuite builds what Build does, and also e2e.test and ginkgo, and the images
// that the storage tests of the first run.
func BuildSuite(ctx context.Context, log io.Writer) (Set, error) {
	return build(ctx, log, true)
}

func build(ctx context.Context, log io.Writer, withSuite bool) (set Set, err error) {
	b, err := newBuilder(ctx, log)
	if err != nil {
		return Set{}, err
	}
	if err := b.buildAll(ctx, cluster); err != nil {
		return Set{}, err
	}
	var wanted map[string][]string
	if withSuite {
		if err := b.buildAll(ctx, suite); err != nil {
			return Set{}, err
		}
		if set.Repositories, wanted, err = b.askSuite(ctx); err != nil {
			return Set{}, err
		}
	}
	if set.Bin, err = b.link(ctx); err != nil {
		return Set{}, err
	}
	images, err := b.images(wanted)
	if err != nil {
		return Set{}, err
	}
	for _, image := range images {
		archive, err := b.archive(ctx, image)
		if err != nil {
			return Set{}, err
		}
		set.Images = append(set.Images, archive)
	}
	return set, nil
}

// builder is the work of one Build.
type builder struct {
	cache
	source   string            // the directory of this package
	programs map[string]string // the file of each program that is built, by its name
	versions map[string]string // of each program, as its go.mod has it
}

func newBuilder(ctx context.Context, log io.Writer) (*builder, error) {
	source, err := source(ctx)
	if err != nil {
		return nil, err
	}
	store, err := openCache(log)
	return &builder{store, source, map[string]string{}, map[string]string{}}, err
}

// link gathers all programs in one directory.
func (b *builder) link(ctx context.Context) (string, error) {
	key := sha256.New()
	names := slices.Sorted(maps.Keys(b.programs))
	for _, name := range names {
		fmt.Fprintln(key, name, b.programs[name])
	}
	return b.entry(ctx, "bin", key, func(dir string) error {
		for _, name := range names {
			if err := os.Link(b.programs[name], filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		return nil
	})
}
