package writelog

import "slices"

// Page is the unit in bytes that a disk never tears.
const Page = 4096

// Kind is the kind of an entry of the log.
type Kind string

// These are the kinds of entries.
const (
	Write Kind = "write"
	Zero  Kind = "zero" // a discard, after which zeros are read
	Flush Kind = "flush"
)

// Entry is one request to a disk.
type Entry struct {
	Kind   Kind
	Offset int64 // in bytes, a multiple of Page; 0 for a flush
	Length int64 // in bytes, a multiple of Page; 0 for a flush
}

// pages returns the number of the first page, and that of the page after the last.
func (e Entry) pages() (from, to int64) {
	return e.Offset / Page, (e.Offset + e.Length) / Page
}

// below is the version of a page that no entry has written.
const below = -1

// versions has, for each page, the entries that wrote it, in order.
type versions map[int64][]int

func (v versions) add(index int, e Entry) {
	for page, end := e.pages(); page < end; page++ {
		v[page] = append(v[page], index)
	}
}

// before returns the last entry before another one that wrote a page, or below.
func (v versions) before(page int64, index int) int {
	all := v[page]
	at, _ := slices.BinarySearch(all, index)
	if at == 0 {
		return below
	}
	return all[at-1]
}

// State is a state that a power cut leaves of a disk.
type State struct {
	Durable int           // the disk has every entry before this one
	Kept    map[int64]int // for each page that was written since: the entry whose write the disk has
}

// version returns the entry that wrote a page last, or below.
func (s State) version(all versions, page int64) int {
	if kept, is := s.Kept[page]; is {
		return kept
	}
	return all.before(page, s.Durable)
}

// Least returns the length of the log at the earliest instant at which a power cut leaves
// this state.
func (s State) Least() int {
	least := s.Durable
	for _, kept := range s.Kept {
		least = max(least, kept+1)
	}
	return least
}
