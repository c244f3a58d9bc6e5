package writelog

import (
	"fmt"
	"os"
	"sync"
)

// image is the first content of a disk.
type image interface {
	page(number int64, to []byte) error
}

// file is an image in a file.
type file struct{ *os.File }

func (f file) page(number int64, to []byte) error {
	_, err := f.ReadAt(to, number*Page)
	return err
}

// view is an image with a state of a disk.
type view struct {
	of *store
	State
}

func (v view) page(number int64, to []byte) error {
	v.of.mu.Lock()
	defer v.of.mu.Unlock()
	return v.of.pageOf(v.version(v.of.versions, number), number, to)
}

// store is one disk: its image, and the log of all requests since.
type store struct {
	image image
	size  int64

	mu       sync.Mutex // protects what follows; locked before that of the disk of a view
	log      []Entry
	data     [][]byte // of the writes, by entry
	versions versions
	reads    map[int64]bool // pages of the image that were read
}

func newStore(image image, size int64) *store {
	return &store{image: image, size: size, versions: versions{}, reads: map[int64]bool{}}
}

// pageOf copies a version of a page. The caller has locked mu.
func (s *store) pageOf(version int, number int64, to []byte) error {
	switch {
	case version == below:
		return s.image.page(number, to)
	case s.log[version].Kind == Zero:
		clear(to)
	default:
		copy(to, s.data[version][number*Page-s.log[version].Offset:])
	}
	return nil
}

// current copies the present version of a page. The caller has locked mu.
func (s *store) current(number int64, to []byte) error {
	version := s.versions.before(number, len(s.log))
	if version == below {
		s.reads[number] = true
	}
	return s.pageOf(version, number, to)
}

func (s *store) readAt(to []byte, offset int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var page [Page]byte
	for len(to) > 0 {
		if err := s.current(offset/Page, page[:]); err != nil {
			return err
		}
		n := copy(to, page[offset%Page:])
		to, offset = to[n:], offset+int64(n)
	}
	return nil
}

// writeAt writes whole pages. It completes the first and the last from their present version.
func (s *store) writeAt(from []byte, offset int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	first, last := offset/Page, (offset+int64(len(from))-1)/Page
	data := make([]byte, (last-first+1)*Page)
	for _, number := range []int64{first, last} {
		at := (number - first) * Page
		if whole := offset <= number*Page && offset+int64(len(from)) >= (number+1)*Page; whole {
			continue
		}
		if err := s.current(number, data[at:at+Page]); err != nil {
			return err
		}
	}
	copy(data[offset-first*Page:], from)
	s.add(Entry{Write, first * Page, int64(len(data))}, data)
	return nil
}

// zero writes zeros to whole pages.
func (s *store) zero(offset, length int64) error {
	if offset%Page != 0 || length%Page != 0 || offset+length > s.size {
		return fmt.Errorf("discard of %d bytes at %d of %d: whole pages of %d are wanted", length, offset, s.size, Page)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(Entry{Zero, offset, length}, nil)
	return nil
}

func (s *store) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(Entry{Kind: Flush}, nil)
}

// add appends to the log. The caller has locked mu.
func (s *store) add(e Entry, data []byte) {
	s.versions.add(len(s.log), e)
	s.log = append(s.log, e)
	s.data = append(s.data, data)
}
