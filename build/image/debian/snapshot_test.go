package debian

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

func TestSnapshotOf(t *testing.T) {
	for commit, want := range map[string]string{
		"2026-03-01T00:00:00Z":      "20260228T000000Z",
		"2026-03-01T23:59:59Z":      "20260228T000000Z",
		"2026-03-01T01:00:00+02:00": "20260227T000000Z", // the day is that of UTC
	} {
		at, err := time.Parse(time.RFC3339, commit)
		if err != nil {
			t.Fatal(err)
		}
		if got := SnapshotOf(at).Format("20060102T150405Z"); got != want {
			t.Errorf("a commit of %s takes Debian as of %s, want %s", commit, got, want)
		}
	}
}

// TestSnapshotDownload has apt take packages from an archive whose lists expired long ago,
// as all do in a snapshot, and of the state that was asked for.
func TestSnapshotDownload(t *testing.T) {
	at := time.Date(2020, 2, 1, 0, 0, 0, 0, time.UTC)
	dir := t.TempDir()
	key, err := openpgp.NewEntity("archive", "", "archive@example.org", &packet.Config{Time: func() time.Time { return at }})
	if err != nil {
		t.Fatal(err)
	}
	var public bytes.Buffer
	if err := key.Serialize(&public); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "keys.gpg"), public.String())
	for when, version := range map[time.Time]string{at: "1.0", at.AddDate(0, 0, 1): "2.0"} {
		for _, suite := range []string{"debian/%s/dists/bookworm", "debian/%s/dists/bookworm-updates", "debian-security/%s/dists/bookworm-security"} {
			suiteOf(t, key, filepath.Join(dir, fmt.Sprintf(suite, when.Format("20060102T150405Z"))), version)
		}
	}
	sources := filepath.Join(dir, "sources.list")
	if err := os.WriteFile(sources, []byte(snapshotLines("file:"+dir, "check-date=yes check-valid-until=yes signed-by="+filepath.Join(dir, "keys.gpg"), at)), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := Apt{Dir: filepath.Join(dir, "apt"), Arch: "amd64", Sources: sources}.Download(t.Context(), []string{"tool"})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].Name != "tool" || got[0].Version != "1.0" {
		t.Errorf("got %+v, want tool 1.0", got)
	}
}

// suiteOf makes a suite with one package, and signed lists that have expired.
func suiteOf(t *testing.T, key *openpgp.Entity, dir, version string) {
	t.Helper()
	base := filepath.Dir(filepath.Dir(dir))
	pack := filepath.Join(t.TempDir(), "tool")
	control := fmt.Sprintf("Package: tool\nVersion: %s\nArchitecture: amd64\nMaintainer: nobody\nDescription: test\n", version)
	write(t, filepath.Join(pack, "DEBIAN", "control"), control)
	deb := filepath.Join(base, "pool", "tool_"+version+"_amd64.deb")
	write(t, deb, "")
	t.Setenv("SOURCE_DATE_EPOCH", "0") // the suites share the package
	if out, err := exec.CommandContext(t.Context(), "dpkg-deb", "--root-owner-group", "--build", pack, deb).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	content, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	packages := fmt.Sprintf("%sFilename: pool/%s\nSize: %d\nSHA256: %x\n", control, filepath.Base(deb), len(content), sha256.Sum256(content))
	write(t, filepath.Join(dir, "main", "binary-amd64", "Packages"), packages)
	var release bytes.Buffer
	signed, err := clearsign.Encode(&release, key.PrivateKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(signed, "Origin: Debian\nLabel: Debian\nSuite: %s\nCodename: %[1]s\nVersion: 12\nDate: Sat, 01 Feb 2020 00:00:00 UTC\nValid-Until: Sat, 08 Feb 2020 00:00:00 UTC\n"+
		"Architectures: amd64\nComponents: main\nSHA256:\n %x %d main/binary-amd64/Packages\n", filepath.Base(dir), sha256.Sum256([]byte(packages)), len(packages))
	if err := signed.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "InRelease"), release.String())
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
