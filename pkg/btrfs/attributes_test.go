package btrfs

import (
	"path/filepath"
	"testing"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"golang.org/x/sys/unix"
)

func TestCompression(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	volume, _ := create(t, mnt, "volume")
	for _, test := range []struct {
		value, inherited string
		err              error
	}{
		{"", "", nil},
		{"zstd", "zstd", nil},
		{"zlib", "zlib", nil},
		{"lzo", "lzo", nil},
		{"none", "", nil},
		// The kernel stores this value as it is, but children inherit only the name.
		{"zstd:3", "zstd", nil},
		{"gzip", "", unix.EINVAL},
		{"", "", nil},
		{"", "", nil},
	} {
		t.Run(test.value, func(t *testing.T) {
			err := SetCompression(volume, test.value)
			wantError(t, err, test.err)
			if err != nil {
				return
			}
			if got := value(Compression(volume))(t); got != test.value {
				t.Errorf("got %q", got)
			}
			child := mkdir(t, t.TempDir(), "x") // a unique name
			child = mkdir(t, volume, filepath.Base(filepath.Dir(filepath.Dir(child))))
			if got := value(Compression(child))(t); got != test.inherited {
				t.Errorf("a new directory has %q, wanted %q", got, test.inherited)
			}
		})
	}
}

func TestNoDataCow(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	volume, _ := create(t, mnt, "volume")
	for _, on := range []bool{false, true, true, false} {
		must(t, SetNoDataCow(volume, on))
		if got := value(NoDataCow(volume))(t); got != on {
			t.Errorf("got %v, wanted %v", got, on)
		}
	}
	must(t, SetNoDataCow(volume, true))
	if !value(NoDataCow(mkdir(t, volume, "dir")))(t) {
		t.Error("not handed down")
	}
	wantError(t, SetCompression(volume, "zstd"), unix.EINVAL)
	must(t, SetNoDataCow(volume, false))
	must(t, SetCompression(volume, "zstd"))
	wantError(t, SetNoDataCow(volume, true), unix.EINVAL)
	must(t, SetReadOnly(volume, true))
	wantError(t, SetCompression(volume, ""), unix.EROFS)
}
