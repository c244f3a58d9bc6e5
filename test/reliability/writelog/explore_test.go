package writelog

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// program stands for the user of a disk. The page that it reads next depends on those before.
type program func(read func(page int64) int) string

// randomProgram returns a program that reads up to so many pages.
func randomProgram(random *rand.Rand, pages, most int) program {
	seed := random.Uint64()
	return func(read func(int64) int) string {
		r, seen := rand.New(rand.NewPCG(seed, 0)), ""
		for range most {
			page := int64(r.IntN(pages))
			version := read(page)
			seen += fmt.Sprintf("%d=%d ", page, version)
			r = rand.New(rand.NewPCG(r.Uint64(), uint64(version+1)))
		}
		return seen
	}
}

// randomLog returns a log of small writes, discards and flushes.
func randomLog(random *rand.Rand, pages, length int) []Entry {
	var log []Entry
	for range length {
		kind := []Kind{Write, Write, Write, Zero, Flush}[random.IntN(5)]
		if kind == Flush {
			log = append(log, Entry{Kind: Flush})
			continue
		}
		first := random.IntN(pages)
		log = append(log, Entry{kind, int64(first) * Page, int64(1+random.IntN(min(2, pages-first))) * Page})
	}
	return log
}

// everything returns the results of a program after every power cut, by brute force: for each length of the
// log, and each choice of a version for each page that was written since the last flush.
func everything(log []Entry, after int, run program) map[string]bool {
	seen := map[string]bool{}
	for length := after; length <= len(log); length++ {
		durable := 0
		for i, e := range log[:length] {
			if e.Kind == Flush {
				durable = i + 1
			}
		}
		disk, choices := map[int64]int{}, map[int64][]int{}
		for i, e := range log[:length] {
			for page, end := e.pages(); page < end; page++ {
				if i < durable {
					disk[page] = i
				} else {
					choices[page] = append(choices[page], i)
				}
			}
		}
		choose(slices.Collect(maps.Keys(choices)), choices, disk, func(disk map[int64]int) {
			seen[run(func(page int64) int {
				if version, is := disk[page]; is {
					return version
				}
				return below
			})] = true
		})
	}
	return seen
}

func choose(pages []int64, choices map[int64][]int, disk map[int64]int, do func(map[int64]int)) {
	if len(pages) == 0 {
		do(disk)
		return
	}
	choose(pages[1:], choices, disk, do)
	for _, version := range choices[pages[0]] {
		other := maps.Clone(disk)
		other[pages[0]] = version
		choose(pages[1:], choices, other, do)
	}
}

// explore returns the same results by an Explorer, and the number of runs.
func explore(t *testing.T, log []Entry, after int, run program) (map[string]bool, Counts) {
	t.Helper()
	all := versions{}
	for i, e := range log {
		all.add(i, e)
	}
	x := Explorer[string]{Most: 1 << 20, Random: rand.New(rand.NewPCG(1, 1)), Run: func(s State) (string, []int64, error) {
		read := map[int64]bool{}
		seen := run(func(page int64) int {
			read[page] = true
			return s.version(all, page)
		})
		return seen, slices.Collect(maps.Keys(read)), nil
	}}
	seen := map[string]bool{}
	err := x.Explore(log, after, func(c Crash[string]) error {
		if c.From < after || c.From > c.To {
			t.Errorf("a power cut at %d to %d, after %d", c.From, c.To, after)
		}
		seen[c.Seen] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return seen, x.Counts
}

// TestExploreFindsEverything compares an Explorer with brute force.
func TestExploreFindsEverything(t *testing.T) {
	for seed := range uint64(400) {
		random := rand.New(rand.NewPCG(seed, 0))
		log := randomLog(random, 6, 10)
		after := random.IntN(len(log) + 1)
		run := randomProgram(random, 6, 1+random.IntN(4))
		want := everything(log, after, run)
		got, _ := explore(t, log, after, run)
		if !maps.Equal(got, want) {
			t.Fatalf("seed %d, after %d of\n%s: got %q, want %q", seed, after, Excerpt(log, 0, len(log)),
				slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
		}
	}
}

// TestExploreRunsFew checks that pages that are not read cost no run.
func TestExploreRunsFew(t *testing.T) {
	log := []Entry{{Write, 0, 1000 * Page}, {Kind: Flush}, {Write, 2000 * Page, Page}, {Kind: Flush}}
	_, counts := explore(t, log, 0, func(read func(int64) int) string { return fmt.Sprint(read(2000)) })
	want := Counts{Writes: 2, Flushes: 2, Pages: 1001, Instants: 1004, Widest: 1000, Runs: 2}
	if counts != want {
		t.Errorf("got %+v, want %+v", counts, want)
	}
}

// TestExploreSaysWhatItLeavesOut checks that an Explorer counts the states that it leaves out.
func TestExploreSaysWhatItLeavesOut(t *testing.T) {
	log := []Entry{{Write, 0, 8 * Page}}
	x := Explorer[int]{Most: 10, Samples: 3, Random: rand.New(rand.NewPCG(1, 1)), Run: func(s State) (int, []int64, error) {
		return len(s.Kept), []int64{0, 1, 2, 3, 4, 5, 6, 7}, nil
	}}
	visited := 0
	if err := x.Explore(log, 0, func(Crash[int]) error { visited++; return nil }); err != nil {
		t.Fatal(err)
	}
	if x.Counts.Runs != 13 || x.Counts.Samples != 3 || x.Counts.LeftOut == 0 || visited != 13 {
		t.Errorf("visited %d, got %+v", visited, x.Counts)
	}
}

func TestExploreNamesTheState(t *testing.T) {
	x := Explorer[bool]{Most: 10, Run: func(s State) (bool, []int64, error) { return s.Kept[7] == 1, []int64{7}, nil }}
	err := x.Explore([]Entry{{Kind: Flush}, {Write, 7 * Page, Page}}, 0, func(c Crash[bool]) error {
		if c.Seen {
			return errors.New("lost")
		}
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "has got 2 to 2 of 2 requests; the first 1 are on it, and of the pages that were written since 7 (of request 1): lost") {
		t.Errorf("got %v", err)
	}
}
