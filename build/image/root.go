package main

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/build/image/debian"
)

// rootfs makes the root filesystem of an image.
type rootfs struct {
	target target
	dir    string // the directory where it is made
	tree   tree   // the files of all packages
	kept   map[string]bool
}

// makeRoot makes the root filesystem of the definition in the directory root below work. It
// removes a previous one. It returns the root filesystem and the packages that contribute to it.
func makeRoot(ctx context.Context, d definition, t target, packages []debian.Package, work string) (root string, used []debian.Package, err error) {
	root, unpacked := filepath.Join(work, "root"), filepath.Join(work, "unpacked")
	for _, dir := range []string{root, unpacked} {
		if err := os.RemoveAll(dir); err != nil {
			return "", nil, err
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", nil, err
		}
	}
	defer os.RemoveAll(unpacked)
	all, err := unpack(ctx, packages, unpacked)
	if err != nil {
		return "", nil, err
	}
	r := &rootfs{target: t, dir: root, tree: all, kept: map[string]bool{}}
	if err := r.choose(d); err != nil {
		return "", nil, err
	}
	if err := r.write(); err != nil {
		return "", nil, err
	}
	used, err = r.record(ctx, packages)
	return root, used, err
}

// choose selects the files to keep.
func (r *rootfs) choose(d definition) error {
	for _, name := range d.programs {
		at, err := r.tree.program(name)
		if err != nil {
			return err
		}
		if err := r.keep(at); err != nil {
			return err
		}
	}
	for _, pattern := range d.files {
		found, err := r.tree.match(pattern)
		if err != nil {
			return err
		}
		for _, at := range found {
			if err := r.keep(at); err != nil {
				return err
			}
		}
	}
	return nil
}

// keep keeps a file and, recursively, what it needs: the target of a link, and the libraries and
// the loader of a program.
func (r *rootfs) keep(at string) error {
	at, err := r.tree.follow(at, false)
	if err != nil || r.kept[at] {
		return err
	}
	r.kept[at] = true
	e := r.tree[at]
	switch e.mode.Type() {
	case 0:
		return r.keepNeeds(at, e.source)
	case fs.ModeSymlink:
		to, err := r.tree.follow(at, true)
		if err != nil {
			return err
		}
		return r.keep(to)
	}
	return fmt.Errorf("%s: a file is wanted, not %s", at, e.mode)
}

func (r *rootfs) keepNeeds(at, source string) error {
	libraries, loader, err := r.target.needs(source)
	if err != nil {
		return err
	}
	if loader != "" {
		if err := r.keep(loader); err != nil {
			return fmt.Errorf("loader of %s: %w", at, err)
		}
	}
	for _, name := range libraries {
		found := slices.IndexFunc(r.target.libraryDirs(), func(dir string) bool {
			_, err := r.tree.follow(path.Join(dir, name), true)
			return err == nil
		})
		if found < 0 {
			return fmt.Errorf("%s loads %s, which no package has", at, name)
		}
		if err := r.keep(path.Join(r.target.libraryDirs()[found], name)); err != nil {
			return err
		}
	}
	return nil
}

// emptyDirs are for mounts and for files that are written while the image runs.
var emptyDirs = map[string]fs.FileMode{
	"dev": 0o755, "proc": 0o755, "run": 0o755, "sys": 0o755, "var/lib": 0o755, "root": 0o700,
	"tmp": 0o777 | fs.ModeSticky, "var/tmp": 0o777 | fs.ModeSticky,
}

// users are the users that need names: root and nobody, as in Debian.
var users = map[string]string{
	"etc/passwd": "root:x:0:0:root:/root:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
	"etc/group":  "root:x:0:\nnogroup:x:65534:\n",
}

// write writes the kept files, and the directories and files of every root filesystem.
func (r *rootfs) write() error {
	for dir, mode := range emptyDirs {
		if err := os.MkdirAll(r.path(dir), 0o755); err != nil {
			return err
		}
		if err := os.Chmod(r.path(dir), mode); err != nil {
			return err
		}
	}
	for at := range r.kept {
		if err := r.writeEntry(at, r.tree[at]); err != nil {
			return err
		}
	}
	for at, text := range users {
		if err := r.writeFile(at, []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, name := range usrDirs {
		if _, err := os.Stat(r.path("usr/" + name)); err != nil {
			continue // some architectures have no lib64
		}
		if err := os.Symlink("usr/"+name, r.path(name)); err != nil {
			return err
		}
	}
	return nil
}

func (r *rootfs) path(at string) string { return filepath.Join(r.dir, at) }

func (r *rootfs) writeFile(at string, content []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(r.path(at)), 0o755); err != nil {
		return err
	}
	return os.WriteFile(r.path(at), content, mode)
}

// writeEntry writes a file or a link. It drops setuid bits, which a container that runs as root
// does not need.
func (r *rootfs) writeEntry(at string, e entry) error {
	if e.link == "" {
		content, err := os.ReadFile(e.source)
		if err != nil {
			return err
		}
		return r.writeFile(at, content, e.mode.Perm())
	}
	to := e.link
	if path.IsAbs(to) {
		var err error
		if to, err = filepath.Rel(path.Dir(at), merged(to)); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(r.path(at)), 0o755); err != nil {
		return err
	}
	return os.Symlink(to, r.path(at))
}

// record adds the licence and the control data of each package that contributes a file. The
// control data goes where scanners look for it in images without dpkg.
func (r *rootfs) record(ctx context.Context, packages []debian.Package) ([]debian.Package, error) {
	owners := map[int]bool{}
	for at := range r.kept {
		owners[r.tree[at].owner] = true
	}
	var used []debian.Package
	for _, i := range slices.Sorted(maps.Keys(owners)) {
		p := packages[i]
		used = append(used, p)
		copyright := path.Join("/usr/share/doc", p.Name, "copyright")
		at, err := r.tree.follow(copyright, true)
		if err != nil {
			return nil, fmt.Errorf("licence of %s: %w", p.Name, err)
		}
		text, err := os.ReadFile(r.tree[at].source)
		if err != nil {
			return nil, err
		}
		if err := r.writeFile(copyright, text, 0o644); err != nil {
			return nil, err
		}
		control, err := debian.Output(exec.CommandContext(ctx, "dpkg-deb", "--field", p.File))
		if err != nil {
			return nil, err
		}
		if err := r.writeFile("var/lib/dpkg/status.d/"+p.Name, []byte(control), 0o644); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(used, func(a, b debian.Package) int { return strings.Compare(a.Name, b.Name) })
	return used, nil
}
