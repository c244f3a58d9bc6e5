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

// A Set has all programs and images of a cluster. Its files may be mounted or copied elsewhere, but must not be
// changed.
type Set struct {
	// Bin is a directory with all programs under their usual names. They need no libraries, and none is a
	// symbolic link, so it may be mounted anywhere.
	Bin string
	// Images are archives for `ctr images import`, one for each image, with its name.
	Images []string
	// Repositories is the file for KUBE_TEST_REPO_LIST, by which Kubernetes' tests use our images. Only
	// BuildSuite sets it.
	Repositories string
}

// Build builds the components of a cluster that are not in the cache, and logs each. If none is missing it
// returns at once. Concurrent calls are safe.
func Build(ctx context.Context, log io.Writer) (Set, error) {
	return build(ctx, log, false)
}

// BuildControlPlane is Build for a cluster without nodes.
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

// BuildSuite is Build with e2e.test, ginkgo, and the images of the storage tests in e2e.test.
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

// builder is the state of one Build.
type builder struct {
	cache
	source   string            // the directory of this package
	programs map[string]string // the file of each program, by its name
	versions map[string]string // of each program, from its go.mod
}

func newBuilder(ctx context.Context, log io.Writer) (*builder, error) {
	source, err := source(ctx)
	if err != nil {
		return nil, err
	}
	store, err := openCache(log)
	return &builder{store, source, map[string]string{}, map[string]string{}}, err
}

// link links all programs into one directory.
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
