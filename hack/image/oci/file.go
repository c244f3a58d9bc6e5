package oci

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// File is a file, a directory or a symbolic link of an image: a file whose bytes
// are those of Source or else Content, unless Link or Dir is set.
type File struct {
	Path    string // in the image, absolute
	Source  string // a file of this machine
	Content []byte
	Link    string // where a symbolic link leads to
	Dir     bool
	// Mode holds permissions, setuid, setgid and sticky bit. Zero stands for that
	// of Source, for 0644 with Content and 0755 for a directory.
	Mode     fs.FileMode
	UID, GID int
}

// Tree returns every file, symbolic link and directory below root as a file below
// prefix, owned by root: who unpacked the tree does not matter. The root itself is
// not among them.
func Tree(root, prefix string) ([]File, error) {
	var files []File
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || name == root {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		below, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		file := File{Path: path.Join("/", prefix, below), Mode: info.Mode() & modeBits}
		switch info.Mode().Type() {
		case 0:
			file.Source = name
		case fs.ModeDir:
			file.Dir = true
		case fs.ModeSymlink:
			if file.Link, err = os.Readlink(name); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s: only files, directories and symbolic links can be part of an image, not %s", name, info.Mode())
		}
		files = append(files, file)
		return nil
	})
	return files, err
}

// modeBits are those of a mode that a layer keeps.
const modeBits = fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky

// arrange sorts files by path and adds the directories that are missing above
// them. Of two with one path the later counts.
func arrange(files []File) ([]File, error) {
	byPath := map[string]File{}
	for _, f := range files {
		f.Path = path.Join("/", f.Path)
		if f.Path == "/" {
			return nil, errors.New("the root directory is part of every image; leave it out")
		}
		byPath[f.Path] = f
	}
	for _, f := range files {
		for dir := path.Dir(path.Join("/", f.Path)); dir != "/"; dir = path.Dir(dir) {
			above, found := byPath[dir]
			if !found {
				byPath[dir] = File{Path: dir, Dir: true}
			} else if !above.Dir {
				return nil, fmt.Errorf("%s cannot be below %s, which is no directory", f.Path, dir)
			}
		}
	}
	sorted := make([]File, 0, len(byPath))
	for _, f := range byPath {
		sorted = append(sorted, f)
	}
	slices.SortFunc(sorted, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return sorted, nil
}

// open returns the bytes of a file, how many they are, and its mode.
func (f File) open() (content io.ReadCloser, size int64, mode fs.FileMode, err error) {
	if f.Source == "" {
		return io.NopCloser(bytes.NewReader(f.Content)), int64(len(f.Content)), f.modeOr(0o644), nil
	}
	source, err := os.Open(f.Source)
	if err != nil {
		return nil, 0, 0, err
	}
	info, err := source.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: a regular file is wanted, not %s", f.Source, info.Mode())
	}
	if err != nil {
		source.Close()
		return nil, 0, 0, err
	}
	return source, info.Size(), f.modeOr(info.Mode() & modeBits), nil
}

func (f File) modeOr(usual fs.FileMode) fs.FileMode {
	if f.Mode == 0 {
		return usual
	}
	return f.Mode
}

// append writes the file as an entry of a layer, and returns how many bytes it
// holds.
func (f File) append(layer *tar.Writer, modified time.Time) (int64, error) {
	header := &tar.Header{Name: strings.TrimPrefix(f.Path, "/"), Uid: f.UID, Gid: f.GID, ModTime: modified}
	if f.Link != "" {
		header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, f.Link, 0o777
		return 0, layer.WriteHeader(header)
	}
	if f.Dir {
		header.Typeflag, header.Mode = tar.TypeDir, tarMode(f.modeOr(0o755))
		header.Name += "/"
		return 0, layer.WriteHeader(header)
	}
	content, size, mode, err := f.open()
	if err != nil {
		return 0, err
	}
	defer content.Close()
	header.Typeflag, header.Mode, header.Size = tar.TypeReg, tarMode(mode), size
	if err := layer.WriteHeader(header); err != nil {
		return 0, err
	}
	return io.Copy(layer, content)
}

// tarMode returns a mode as tar has it, which is that of the system calls.
func tarMode(mode fs.FileMode) int64 {
	bits := int64(mode.Perm())
	for flag, bit := range map[fs.FileMode]int64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if mode&flag != 0 {
			bits |= bit
		}
	}
	return bits
}
