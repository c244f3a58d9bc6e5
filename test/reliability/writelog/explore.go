package writelog

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
)

// Crash is a state, and the result of running it.
type Crash[T any] struct {
	State
	// From and To are the lengths of the log between which a power cut leaves the state.
	From, To int
	Seen     T
}

// Explorer runs all states that power cuts can leave of a disk.
type Explorer[T any] struct {
	// Run uses a disk in a state. It returns its result, and the pages that it read before it wrote them.
	Run func(State) (seen T, reads []int64, err error)
	// Most is the largest number of states to run between two flushes. If there are more, the Explorer draws.
	Most int
	// Samples is the number of random states between two flushes that run although they are equal to any
	// reader to one that has run.
	Samples int
	Random  *rand.Rand

	Counts   Counts
	log      []Entry
	versions versions
	runs     []run[T]
}

// Counts counts the work of an Explorer.
type Counts struct {
	Writes   int `json:"writes"`   // in the part of the log that was explored
	Flushes  int `json:"flushes"`  //
	Pages    int `json:"pages"`    // of these writes
	Instants int `json:"instants"` // after each page of each write, and after each flush
	Widest   int `json:"widest"`   // the most pages between two flushes
	Runs     int `json:"runs"`     // states that were run
	Samples  int `json:"samples"`  // of these, drawn at random although equal to another
	LeftOut  int `json:"leftOut"`  // branches beyond Most
}

// Add adds the counts of another Explorer.
func (c *Counts) Add(other Counts) {
	c.Writes += other.Writes
	c.Flushes += other.Flushes
	c.Pages += other.Pages
	c.Instants += other.Instants
	c.Widest = max(c.Widest, other.Widest)
	c.Runs += other.Runs
	c.Samples += other.Samples
	c.LeftOut += other.LeftOut
}

// run is the result of a state, and the versions of the pages that were read.
type run[T any] struct {
	seen  T
	pages map[int64]int
}

// Explore calls visit for all states that a power cut leaves at or after a length of the log. It takes states
// that are equal to any reader as one.
func (x *Explorer[T]) Explore(log []Entry, after int, visit func(Crash[T]) error) error {
	x.log, x.versions, x.runs = log, versions{}, nil
	for i, e := range log {
		x.versions.add(i, e)
	}
	for from := 0; from <= len(log); {
		to := from
		for to < len(log) && log[to].Kind != Flush {
			to++
		}
		if to >= after {
			if err := x.between(from, to, max(from, after), visit); err != nil {
				return err
			}
		}
		from = to + 1
	}
	return nil
}

// between visits the states that power cuts leave after one flush and before the next.
func (x *Explorer[T]) between(from, to, after int, visit func(Crash[T]) error) error {
	pending := x.count(from, to, after)
	visitState := func(s State, again bool) ([]int64, error) {
		r, err := x.look(s, again)
		if err != nil {
			return nil, err
		}
		c := Crash[T]{State: s, From: max(s.Least(), after), To: to, Seen: r.seen}
		if err := visit(c); err != nil {
			return nil, fmt.Errorf("%s: %w", x.Describe(c), err)
		}
		return slices.Sorted(maps.Keys(r.pages)), nil
	}
	left, ran := []State{{Durable: from}}, x.Counts.Runs
	for len(left) > 0 {
		if x.Counts.Runs-ran >= x.Most {
			x.Counts.LeftOut += len(left)
			break
		}
		next := x.draw(&left)
		reads, err := visitState(next, false)
		if err != nil {
			return err
		}
		left = append(left, x.branches(next, pending, reads)...)
	}
	for range min(x.Samples, len(pending)) {
		if _, err := visitState(x.sample(from, pending), true); err != nil {
			return err
		}
		x.Counts.Samples++
	}
	return nil
}

// count returns the versions of the pages that were written between two flushes.
func (x *Explorer[T]) count(from, to, after int) versions {
	pending := versions{}
	for i := from; i < to; i++ {
		pending.add(i, x.log[i])
		if i >= after {
			x.Counts.Writes++
			x.Counts.Pages += int(x.log[i].Length / Page)
			x.Counts.Instants += int(x.log[i].Length / Page)
		}
	}
	x.Counts.Instants++
	if to < len(x.log) {
		x.Counts.Flushes++
	}
	x.Counts.Widest = max(x.Counts.Widest, len(pending))
	return pending
}

// draw takes the first of the states while all can be run, and a random one otherwise.
func (x *Explorer[T]) draw(left *[]State) State {
	at := 0
	if len(*left) > x.Most {
		at = x.Random.IntN(len(*left))
	}
	s := (*left)[at]
	*left = slices.Delete(*left, at, at+1)
	return s
}

// branches returns states with another version of a page that the run has read and that its state has not
// fixed. Each also stands for states that differ in later pages.
func (x *Explorer[T]) branches(s State, pending versions, reads []int64) []State {
	var all []State
	decided := maps.Clone(s.Kept)
	if decided == nil {
		decided = map[int64]int{}
	}
	for _, page := range reads {
		if _, is := decided[page]; is || len(pending[page]) == 0 {
			continue
		}
		for _, version := range pending[page] {
			other := maps.Clone(decided)
			other[page] = version
			all = append(all, State{s.Durable, other})
		}
		decided[page] = x.versions.before(page, s.Durable)
	}
	return all
}

// sample draws a random state between two flushes.
func (x *Explorer[T]) sample(from int, pending versions) State {
	s := State{Durable: from, Kept: map[int64]int{}}
	for _, page := range slices.Sorted(maps.Keys(pending)) {
		if version := x.Random.IntN(len(pending[page]) + 1); version > 0 {
			s.Kept[page] = pending[page][version-1]
		}
	}
	return s
}

// look returns an earlier run that is equal to any reader, or runs the state.
func (x *Explorer[T]) look(s State, again bool) (run[T], error) {
	for _, r := range x.runs {
		if !again && x.same(s, r) {
			return r, nil
		}
	}
	seen, reads, err := x.Run(s)
	if err != nil {
		return run[T]{}, fmt.Errorf("%s: %w", x.Describe(Crash[T]{State: s, From: s.Least(), To: len(x.log)}), err)
	}
	x.Counts.Runs++
	r := run[T]{seen, make(map[int64]int, len(reads))}
	for _, page := range reads {
		r.pages[page] = s.version(x.versions, page)
	}
	x.runs = append(x.runs, r)
	return r, nil
}

// same reports whether run r would read the same in state s.
func (x *Explorer[T]) same(s State, r run[T]) bool {
	for page, version := range r.pages {
		if s.version(x.versions, page) != version {
			return false
		}
	}
	return true
}

// PowerGoes begins every description.
const PowerGoes = "the power goes when the disk"

// Describe returns the versions in a state, with the log around it.
func (x *Explorer[T]) Describe(c Crash[T]) string {
	text := fmt.Sprintf(PowerGoes+" has got %d to %d of %d requests; the first %d are on it", c.From, c.To, len(x.log), c.Durable)
	if len(c.Kept) > 0 {
		text += ", and of the pages that were written since"
		for _, page := range slices.Sorted(maps.Keys(c.Kept)) {
			if c.Kept[page] >= c.Durable {
				text += fmt.Sprintf(" %d (of request %d)", page, c.Kept[page])
			}
		}
	}
	return text
}

// Excerpt lists a part of the log, for people.
func Excerpt(log []Entry, from, to int) string {
	var text string
	for i := max(from, 0); i < min(to, len(log)); i++ {
		text += fmt.Sprintf("%6d %s", i, log[i].Kind)
		if log[i].Kind != Flush {
			text += fmt.Sprintf(" pages %d to %d", log[i].Offset/Page, (log[i].Offset+log[i].Length)/Page-1)
		}
		text += "\n"
	}
	return text
}
