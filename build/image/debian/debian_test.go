package debian

import (
	"reflect"
	"strings"
	"testing"
)

func TestPlanned(t *testing.T) {
	got, err := Apt{Dir: "/d"}.planned(`Reading package lists...
Inst libc6 (2.36-9+deb12u14 Debian:12.15/oldstable [arm64]) []
Inst zlib1g (1:1.2.13.dfsg-1 Debian:12.15/oldstable, Debian-Security:12/oldstable-security [arm64])
Inst debconf (1.5.82 Ubuntu:24.04/noble [all])
Conf libc6 (2.36-9+deb12u14 Debian:12.15/oldstable [arm64])
`)
	if err != nil {
		t.Fatal(err)
	}
	want := []Package{
		{"libc6", "2.36-9+deb12u14", "/d/cache/archives/libc6_2.36-9+deb12u14_arm64.deb"},
		{"zlib1g", "1:1.2.13.dfsg-1", "/d/cache/archives/zlib1g_1%3a1.2.13.dfsg-1_arm64.deb"},
		{"debconf", "1.5.82", "/d/cache/archives/debconf_1.5.82_all.deb"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestPlannedRefuses(t *testing.T) {
	for name, test := range map[string]struct{ plan, want string }{
		"nothing":               {"Reading package lists...\n", "no package"},
		"somebody's mount":      {"Inst mount (9 Somebody:1/stable [amd64])\n", "Somebody:1/stable"},
		"local file, no origin": {"Inst mount (9 [amd64])\n", "no package"},
	} {
		if _, err := (Apt{}).planned(test.plan); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got error %v, want one with %q", name, err, test.want)
		}
	}
}
