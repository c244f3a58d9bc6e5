package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/build/image/debian"
)

// entry is a file, a directory or a symbolic link of a package.
type entry struct {
	owner  int    // the index of the package
	source string // the path where it was unpacked
	link   string // the target of a symbolic link
	mode   fs.FileMode
}

// tree has the files of several packages, by absolute path, as if all were installed. /bin, /sbin
// and /lib are links into /usr, wherever a package has its files.
type tree map[string]entry

// unpack unpacks each package into its own directory below dir.
func unpack(ctx context.Context, packages []debian.Package, dir string) (tree, error) {
	all := tree{}
	for i, p := range packages {
		into := filepath.Join(dir, p.Name)
		if _, err := debian.Output(exec.CommandContext(ctx, "dpkg-deb", "--extract", p.File, into)); err != nil {
			return nil, err
		}
		if err := all.add(i, into); err != nil {
			return nil, fmt.Errorf("package %s: %w", p.Name, err)
		}
	}
	return all, nil
}

// add adds the files of a package.
func (t tree) add(owner int, root string) error {
	return filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		e := entry{owner: owner, source: name, mode: info.Mode()}
		if e.mode.Type() == fs.ModeSymlink {
			if e.link, err = os.Readlink(name); err != nil {
				return err
			}
		}
		below := strings.TrimPrefix(strings.TrimPrefix(name, root), "/")
		if e.link != "" && slices.Contains(usrDirs, below) {
			return nil // from Debian 13 on base-files has the links
		}
		at := merged("/" + below)
		if _, found := t[at]; !found || !e.mode.IsDir() {
			t[at] = e
		}
		return nil
	})
}

// usrDirs are the directories of /usr that have a link in the root.
var usrDirs = []string{"bin", "sbin", "lib", "lib64"}

// merged returns a path with /bin, /sbin and /lib replaced by those in /usr.
func merged(at string) string {
	first, _, _ := strings.Cut(strings.TrimPrefix(at, "/"), "/")
	if slices.Contains(usrDirs, first) {
		return "/usr" + at
	}
	return at
}

// maxLinks is how many links a path may contain, as in the kernel.
const maxLinks = 40

// follow resolves the links in a path, in its last part only on request.
func (t tree) follow(at string, last bool) (string, error) {
	asked := at
links:
	for range maxLinks {
		at = merged(path.Clean(at))
		parts := strings.Split(strings.TrimPrefix(at, "/"), "/")
		for i := range parts {
			here := "/" + path.Join(parts[:i+1]...)
			e, found := t[here]
			if !found {
				return "", fmt.Errorf("%s: %w in any package", asked, fs.ErrNotExist)
			}
			if e.link == "" || i == len(parts)-1 && !last {
				continue
			}
			to := e.link
			if !path.IsAbs(to) {
				to = path.Join(path.Dir(here), to)
			}
			at = path.Join(to, path.Join(parts[i+1:]...))
			continue links
		}
		return at, nil
	}
	return "", fmt.Errorf("%s: too many links", asked)
}

// match returns the paths that match a pattern, sorted.
func (t tree) match(pattern string) ([]string, error) {
	var found []string
	for at := range t {
		ok, err := path.Match(pattern, at)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", pattern, err)
		}
		if ok {
			found = append(found, at)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s: no package has it", pattern)
	}
	slices.Sort(found)
	return found, nil
}

// program returns the path of a program.
func (t tree) program(name string) (string, error) {
	for _, dir := range []string{"/usr/bin/", "/usr/sbin/"} {
		if _, found := t[dir+name]; found {
			return dir + name, nil
		}
	}
	return "", errors.New("no package has a program " + name)
}
