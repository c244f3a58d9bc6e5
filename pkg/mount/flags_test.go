package mount

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFlagsOverThoseOfTheFilesystem(t *testing.T) {
	for name, test := range map[string]struct {
		asked []string
		base  Flags
		want  string
	}{
		"none":          {nil, unix.ST_RELATIME, "relatime,rw"},
		"added":         {[]string{"nodev"}, unix.ST_RELATIME | unix.ST_NOSUID, "nodev,nosuid,relatime,rw"},
		"noatime":       {[]string{"noatime"}, unix.ST_RELATIME, "noatime,rw"},
		"relatime":      {[]string{"relatime"}, unix.ST_NOATIME, "relatime,rw"},
		"neither":       {nil, 0, "rw"},
		"others' flags": {nil, unix.ST_MANDLOCK | unix.ST_SYNCHRONOUS | 0x20, "rw"},
	} {
		asked, err := ParseFlags(test.asked)
		if got := asked.Over(test.base).String(); err != nil || got != test.want {
			t.Errorf("%s: want %s, got %s, %v", name, test.want, got, err)
		}
	}
	if got := Flags(0).attributes(); got.Attr_set != unix.MOUNT_ATTR_STRICTATIME || got.Attr_clr&unix.MOUNT_ATTR_RDONLY == 0 {
		t.Errorf("without flags: %+v", got)
	}
}

func TestFlagsThatNobodyHas(t *testing.T) {
	for _, options := range [][]string{{"rw"}, {"bind"}, {"ro", "remount,suid"}, {""}, {"noatime", "relatime"}} {
		if flags, err := ParseFlags(options); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %s, %v", options, flags, err)
		}
	}
}
