package btrfs

import (
	"errors"
	"path/filepath"
	"strings"
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

func TestCompressionOfAnOlderKernel(t *testing.T) {
	t.Parallel()
	mnt := btrfstest.Mount(t)
	btrfstest.WhileRefused(t, func() {
		if err := SetCompression(mnt, "none"); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "Linux 5.14") {
			t.Errorf("none: got %v, want ErrUnsupported and Linux 5.14", err)
		}
		if err := SetCompression(mnt, "gzip"); !errors.Is(err, unix.EINVAL) || errors.Is(err, ErrUnsupported) {
			t.Errorf("gzip: got %v, want EINVAL alone", err)
		}
	}, btrfstest.Call{Number: unix.SYS_FSETXATTR, Err: unix.EINVAL})
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
	for _, value := range []string{"zstd", "none"} {
		err := SetCompression(volume, value)
		wantError(t, err, unix.EINVAL)
		if errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: got %v, but the directory is in the way, not the kernel", value, err)
		}
	}
	must(t, SetNoDataCow(volume, false))
	must(t, SetCompression(volume, "zstd"))
	wantError(t, SetNoDataCow(volume, true), unix.EINVAL)
	must(t, SetReadOnly(volume, true))
	wantError(t, SetCompression(volume, ""), unix.EROFS)
}
