// Package called counts calls by function.
package called

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
)

var (
	mu    sync.Mutex
	calls map[string]int // nil: nothing is counted
)

// Count counts one call of a function.
func Count(function string) {
	mu.Lock()
	defer mu.Unlock()
	if calls != nil {
		calls[function]++
	}
}

// During runs fn, and prints how often each function was called meanwhile.
func During(w io.Writer, what string, fn func()) {
	mu.Lock()
	calls = map[string]int{}
	mu.Unlock()
	fn()
	mu.Lock()
	defer mu.Unlock()
	counted := calls
	calls = nil
	all, rooms := 0, map[string]int{}
	for function, n := range counted {
		room, _, _ := strings.Cut(function, ".")
		all += n
		rooms[room] += n
	}
	fmt.Fprintf(w, "%s: %d calls, by package %v\n", what, all, rooms)
	for _, function := range slices.SortedFunc(maps.Keys(counted), func(a, b string) int {
		return cmp.Or(cmp.Compare(counted[b], counted[a]), cmp.Compare(a, b))
	}) {
		fmt.Fprintf(w, "%6d %s\n", counted[function], function)
	}
}
