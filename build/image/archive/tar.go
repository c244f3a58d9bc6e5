package archive

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"time"
)

// Tar writes the files, directories and symbolic links of a filesystem in the order of their
// names. All belong to root and have the same time. The root directory is omitted.
func Tar(w io.Writer, files fs.FS, modified time.Time) error {
	out := tar.NewWriter(w)
	err := fs.WalkDir(files, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		if err := add(out, files, name, entry, modified); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return out.Close()
}

func add(out *tar.Writer, files fs.FS, name string, entry fs.DirEntry, modified time.Time) error {
	info, err := entry.Info()
	if err != nil {
		return err
	}
	var link string
	switch entry.Type() {
	case 0, fs.ModeDir:
	case fs.ModeSymlink:
		if link, err = fs.ReadLink(files, name); err != nil {
			return err
		}
	default:
		return fmt.Errorf("only files, directories and symbolic links can be part of an image, not %s", info.Mode())
	}
	found, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	header := &tar.Header{Typeflag: found.Typeflag, Name: name, Linkname: link, Size: found.Size, Mode: found.Mode, ModTime: modified}
	if entry.IsDir() {
		header.Name += "/"
		header.Mode |= 0o200 // fstest.MapFS synthesizes directories without it
	}
	if err := out.WriteHeader(header); err != nil || !entry.Type().IsRegular() {
		return err
	}
	content, err := files.Open(name)
	if err != nil {
		return err
	}
	defer content.Close()
	_, err = io.Copy(out, content)
	return err
}
