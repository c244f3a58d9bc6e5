package simulate

import (
	"maps"
	"slices"
	"sync"
)

// facts are what the driver has acknowledged of volumes and snapshots, by handle.
type facts struct {
	mu sync.Mutex
	of map[string]*fact
}

type fact struct {
	asked    bool   // for the first time
	asking   int    // requests to make it whose outcome is not known
	made     bool   // acknowledged
	deleting bool   // a deletion was asked for
	deleted  bool   // acknowledged, and nobody has asked for it again
	content  string // that was synced
	size     int64  // acknowledged
}

func (f *facts) change(handle string, do func(*fact)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.of[handle] == nil {
		f.of[handle] = &fact{}
	}
	do(f.of[handle])
}

// creates notes that something is asked for, and what its source has for sure. It may be made
// by the first request already.
func (f *facts) creates(handle, content string) {
	f.change(handle, func(x *fact) {
		x.deleted = false
		x.asking++
		if !x.asked {
			x.asked, x.content = true, content
		}
	})
}

func (f *facts) created(handle string) {
	f.change(handle, func(x *fact) { x.made = true; x.asking-- })
}

// refused notes that something was not made.
func (f *facts) refused(handle string) { f.change(handle, func(x *fact) { x.asking-- }) }
func (f *facts) deletes(handle string) { f.change(handle, func(x *fact) { x.deleting = true }) }
func (f *facts) deleted(handle string) {
	f.change(handle, func(x *fact) { *x = fact{deleting: true, deleted: x.asking == 0, asking: x.asking} })
}
func (f *facts) wrote(handle string) { f.change(handle, func(x *fact) { x.content = handle }) }
func (f *facts) grown(handle string, size int64) {
	f.change(handle, func(x *fact) { x.size = max(x.size, size) })
}

// content returns what a volume or snapshot surely has.
func (f *facts) content(handle string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if x := f.of[handle]; x != nil {
		return x.content
	}
	return ""
}

// all returns the handles, sorted, and a copy of what is known of each.
func (f *facts) all() (handles []string, of map[string]fact) {
	f.mu.Lock()
	defer f.mu.Unlock()
	of = map[string]fact{}
	for handle, x := range f.of {
		of[handle] = *x
	}
	return slices.Sorted(maps.Keys(of)), of
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
