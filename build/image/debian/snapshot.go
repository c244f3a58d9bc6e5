package debian

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Debian's archive of snapshots keeps every state, so that the same packages can be had
// years later. What comes from there is signed, by a signature that is older than apt
// accepts otherwise.
const (
	snapshotArchive = "http://snapshot.debian.org/archive"
	snapshotKeys    = "/usr/share/keyrings/debian-archive-keyring.gpg"
	snapshotSuite   = "bookworm"
)

// SnapshotOf returns the state of Debian for a commit: that of the midnight, UTC, which the
// day before the commit began with. By the time of the commit that state is archived, and
// it stays the last one before its time.
func SnapshotOf(commit time.Time) time.Time {
	return commit.UTC().Truncate(24*time.Hour).AddDate(0, 0, -1)
}

// WriteSnapshot writes a sources file of Debian as it was at a time.
func WriteSnapshot(file string, at time.Time) error {
	if _, err := os.Stat(snapshotKeys); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: Debian's keys are wanted; install the package debian-archive-keyring", snapshotKeys)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(snapshotLines(snapshotArchive, "signed-by="+snapshotKeys, at)), 0o644)
}

func snapshotLines(archive, trust string, at time.Time) string {
	var lines string
	for _, source := range []struct{ name, suite string }{
		{"debian", snapshotSuite}, {"debian", snapshotSuite + "-updates"}, {"debian-security", snapshotSuite + "-security"},
	} {
		lines += fmt.Sprintf("deb [%s check-valid-until=no] %s/%s/%s/ %s main\n", trust, archive, source.name, at.Format("20060102T150405Z"), source.suite)
	}
	return lines
}
