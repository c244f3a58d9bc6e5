package pool

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrfs-csi/btrfs-csi/pkg/mount"
)

// SwapFiles reads /proc/swaps, which has the paths that the processes saw that ran swapon. A path
// that leads elsewhere in the driver's mount namespace, or nowhere, is in no volume. The path may
// cross any filesystem of the node, also a silent one. So SwapFiles uses the mount table to find
// the paths into the volume, and then opens the files within the volume alone.
func (r *root) SwapFiles(s Slot) (files []string, err error) {
	active, err := os.ReadFile("/proc/swaps")
	if os.IsNotExist(err) {
		return nil, nil // a kernel without swap
	}
	all := swapFiles(string(active))
	if err != nil || len(all) == 0 {
		return nil, err
	}
	within, err := mount.Within(r.subvolume(s), all)
	if err != nil {
		return nil, err
	}
	return thoseIn(r.subvolume(s), all, within)
}

// thoseIn returns the files in a subvolume, but not in a nested one. It accesses no other
// filesystem.
func thoseIn(subvolume string, files []string, within map[string]string) (found []string, err error) {
	dir, err := unix.Open(subvolume, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	device, err := deviceOf(dir, ".")
	for _, file := range files {
		rel, is := within[file]
		if !is {
			continue
		}
		if of, failed := deviceOf(dir, rel); failed == nil && of == device {
			found = append(found, file)
		}
	}
	return found, err
}

// deviceOf returns the device number of a file below an open directory. It fails if the path
// crosses a mount or a link.
func deviceOf(dir int, rel string) (uint64, error) {
	fd, err := unix.Openat2(dir, rel, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return st.Dev, err
}

// swapFiles returns the paths of the files in /proc/swaps.
func swapFiles(active string) (files []string) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(active) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[1] == "file" {
			files = append(files, unescape.Replace(fields[0]))
		}
	}
	return files
}
