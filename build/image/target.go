package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
)

// target is the architecture of an image.
type target struct {
	arch    string // the name that both Go and Debian use
	machine elf.Machine
	tuple   string // the name of the directories of its libraries
}

var targets = []target{
	{"amd64", elf.EM_X86_64, "x86_64-linux-gnu"},
	{"arm64", elf.EM_AARCH64, "aarch64-linux-gnu"},
}

func targetOf(arch string) (target, error) {
	i := slices.IndexFunc(targets, func(t target) bool { return t.arch == arch })
	if i < 0 {
		return target{}, fmt.Errorf("architecture %q: amd64 and arm64 are known", arch)
	}
	return targets[i], nil
}

// libraryDirs are the directories where the loader looks, without a cache.
func (t target) libraryDirs() []string {
	return []string{path.Join("/usr/lib", t.tuple), "/usr/lib"}
}

// needs returns the names of the libraries that a program or a library loads, and the path of its
// loader. A library and a static program have no loader. A file without machine code needs
// nothing. Code for another architecture is an error.
func (t target) needs(file string) (libraries []string, loader string, err error) {
	opened, err := os.Open(file)
	if err != nil {
		return nil, "", err
	}
	defer opened.Close()
	magic := make([]byte, len(elf.ELFMAG))
	if n, err := opened.ReadAt(magic, 0); string(magic[:n]) != elf.ELFMAG {
		if errors.Is(err, io.EOF) { // the file is shorter
			err = nil
		}
		return nil, "", err
	}
	code, err := elf.NewFile(opened)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", file, err)
	}
	if code.Machine != t.machine {
		return nil, "", fmt.Errorf("%s is for %s; %s is wanted", file, code.Machine, t.machine)
	}
	for _, segment := range code.Progs {
		if segment.Type == elf.PT_INTERP {
			text, err := io.ReadAll(segment.Open())
			if err != nil {
				return nil, "", fmt.Errorf("%s: %w", file, err)
			}
			loader = strings.TrimRight(string(text), "\x00")
		}
	}
	libraries, err = code.ImportedLibraries()
	return libraries, loader, err
}
