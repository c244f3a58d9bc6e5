package reliability

import (
	"fmt"
	"regexp"
	"slices"
	"sync"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// position is a place in the journal, counted from 1.
type position int

// span is a request: when it was sent first, and when it was answered for good. 0 is
// not yet.
type span struct{ asked, answered position }

// window holds an instant of which no more is known than that it lies in it.
type window struct{ from, to position }

// surely reports whether what s asked for was done by then.
func (s span) surely(w window) bool { return s.answered != 0 && s.answered <= w.from }

// maybe reports whether it may have been.
func (s span) maybe(w window) bool { return s.asked != 0 && s.asked <= w.to }

// timeline is what a thing had one after the other, such as sizes.
type timeline[T any] []*event[T]

type event[T any] struct {
	span
	value T
}

// during returns what it may have had: the last that it surely had, and all that may
// have come after.
func (t timeline[T]) during(w window) []T {
	first := 0
	for i, e := range t {
		if e.surely(w) {
			first = i
		}
	}
	var values []T
	for _, e := range t[first:] {
		if e.maybe(w) {
			values = append(values, e.value)
		}
	}
	return values
}

// object is a volume or a snapshot, from the first request for it on. Names are never
// used again. model.mu protects what is not fixed.
type object struct {
	kind       meta.Kind
	name, id   string // fixed
	source     *object
	parameters map[string]string

	created, removed span
	sizes            timeline[int64]
	contents         timeline[content] // empty for a copy that was not answered yet

	busy              bool // one worker at a time may do more than copy it
	staged, published presence
	trail             []string // what happened to it
}

// asked are the parameters that its record has.
func (o *object) asked() meta.Parameters {
	return meta.Parameters{Compression: o.parameters["compression"], NoDataCow: o.parameters["nodatacow"] == "true"}
}

// properties are those that its root directory has: its own, or else its source's.
func (o *object) properties() meta.Parameters {
	if o.source != nil && len(o.parameters) == 0 {
		return o.source.properties()
	}
	return o.asked()
}

// presence is that of a mount.
type presence int

const (
	absent presence = iota
	unsure
	present
)

// model is what has been asked for and answered. Only a worker that has the object
// busy changes it, so requests for one object come one after the other, or are the same
// several times at once.
type model struct {
	mu     sync.Mutex // protects what follows, and all objects
	now    position
	all    map[string]*object // by ID
	living []*object          // those whose removal was not answered
	moment *moment            // nil: nobody waits for one
	passed func(position)     // nil, or called at each position, with mu held
}

func newModel() *model { return &model{now: 1, all: map[string]*object{}} }

// begun returns a model in which only a copy of a volume of another model exists, and that copy.
func begun(volume *object) (*model, *object) {
	m := newModel()
	made := span{m.now, m.now}
	o := &object{kind: volume.kind, name: volume.name, id: volume.id, parameters: volume.parameters, created: made}
	o.sizes = timeline[int64]{{made, volume.sizes[len(volume.sizes)-1].value}}
	o.contents = timeline[content]{{made, volume.contents[len(volume.contents)-1].value}}
	m.all[o.id], m.living = o, []*object{o}
	return m, o
}

// step goes on to the next position. The caller holds mu.
func (m *model) step() {
	m.now++
	if m.passed != nil {
		m.passed(m.now)
	}
}

// here returns the present position.
func (m *model) here() position {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.step()
	return m.now
}

// instant is the window of the present, when nothing is under way.
func (m *model) instant() window {
	return exactly(m.here())
}

// exactly returns the window of one position.
func exactly(p position) window { return window{p, p} }

// ask notes that a request is about to be sent.
func (m *model) ask(o *object, s *span, format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.step()
	s.asked = m.now
	m.record(o, "ask "+fmt.Sprintf(format, args...))
}

// answer notes that it was answered.
func (m *model) answer(o *object, s *span, what deed) {
	m.mu.Lock()
	m.step()
	s.answered = m.now
	m.record(o, string(what))
	m.mu.Unlock()
	m.pause(what)
}

// deed is something that was acknowledged.
type deed string

const (
	made       deed = "made"
	configured deed = "made with properties" // and from nothing: no ioctl has committed it
	removed    deed = "removed"
	expanded   deed = "expanded"
	written    deed = "written"
)

// deeds are all kinds.
var deeds = []deed{made, configured, removed, expanded, written}

// moment is the one right after a deed was acknowledged. Who has it acknowledged waits
// until the moment has passed.
type moment struct {
	deed   deed
	came   chan struct{} // closed when it has come
	passed chan struct{} // closed when it may go on
}

// await waits for the next deed of a kind, from now on.
func (m *model) await(d deed) *moment {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.moment = &moment{d, make(chan struct{}), make(chan struct{})}
	return m.moment
}

// awaits reports whether somebody waits for a deed of a kind.
func (m *model) awaits(d deed) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.moment != nil && m.moment.deed == d
}

// pause holds the caller while the moment is that of its deed.
func (m *model) pause(d deed) {
	m.mu.Lock()
	now := m.moment
	if now == nil || now.deed != d {
		m.mu.Unlock()
		return
	}
	m.moment = nil
	m.mu.Unlock()
	close(now.came)
	<-now.passed
}

// longestTrail is how much of what happened to an object is kept.
const longestTrail = 60

// record adds to the trail of an object. The caller holds mu.
func (m *model) record(o *object, what string) {
	if len(o.trail) == longestTrail {
		o.trail = slices.Delete(o.trail, 1, 2) // the first line says what it is
	}
	o.trail = append(o.trail, fmt.Sprintf("%d %s", m.now, what))
}

// declare begins the life of an object. The caller holds mu.
func (m *model) declare(o *object) {
	m.step()
	o.created.asked = m.now
	for _, e := range o.sizes {
		e.span = o.created
	}
	for _, e := range o.contents {
		e.span = o.created
	}
	o.busy = true
	m.all[o.id] = o
	m.living = append(m.living, o)
	from := ""
	if o.source != nil {
		from = " of " + o.source.id
	}
	m.record(o, fmt.Sprintf("ask create %s%s %v", o.kind, from, o.parameters))
}

// exists notes that an object was made, with the size and content that it turned out
// to have.
func (m *model) exists(o *object, size int64, c content) error {
	if err := m.confirm(o, size, c); err != nil {
		return err
	}
	m.pause(made)
	if o.source == nil && len(o.parameters) > 0 {
		m.pause(configured)
	}
	return nil
}

func (m *model) confirm(o *object, size int64, c content) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.step()
	w := window{o.created.asked, m.now}
	if sizes := o.sizesDuring(w); !slices.Contains(sizes, size) {
		return fmt.Errorf("%s was made with %d bytes, wanted is one of %v", o.id, size, sizes)
	}
	if contents := o.contentsDuring(w); !slices.Contains(contents, c) {
		return fmt.Errorf("%s was made with %s, wanted is one of %v", o.id, c, contents)
	}
	o.created.answered = m.now
	o.sizes = timeline[int64]{{o.created, size}}
	o.contents = timeline[content]{{o.created, c}}
	m.record(o, fmt.Sprintf("made, %d bytes, %s", size, c))
	return nil
}

// refused notes that an object will not be made.
func (m *model) refused(o *object) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.step()
	o.removed = span{m.now, m.now}
	m.record(o, "refused")
	m.bury(o)
}

// gone notes that the removal of an object was answered.
func (m *model) gone(o *object) {
	m.answer(o, &o.removed, removed)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bury(o)
}

// bury takes an object out of the living. The caller holds mu.
func (m *model) bury(o *object) {
	m.living = slices.DeleteFunc(m.living, func(other *object) bool { return other == o })
}

// release lets other workers have the object.
func (m *model) release(o *object) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o.busy = false
}

// sizesDuring returns the sizes that it may have had. The caller holds mu.
func (o *object) sizesDuring(w window) []int64 {
	if len(o.sizes) > 0 {
		return o.sizes.during(w)
	}
	return o.source.sizesDuring(window{o.created.asked, w.to})
}

// contentsDuring is the same for what was in it. What is a copy of a volume that is
// being written has what that had at one instant.
func (o *object) contentsDuring(w window) []content {
	if len(o.contents) > 0 {
		return o.contents.during(w)
	}
	return o.source.contentsDuring(window{o.created.asked, w.to})
}

// expectation is what can be said of an object at one instant.
type expectation struct {
	object   *object
	must     bool // it may be there, or else is not in the list
	sizes    []int64
	contents []content
}

// expect returns all that may be there, by ID.
func (m *model) expect(w window) map[string]expectation {
	m.mu.Lock()
	defer m.mu.Unlock()
	expected := map[string]expectation{}
	for id, o := range m.all {
		if !o.created.maybe(w) || o.removed.surely(w) {
			continue
		}
		expected[id] = expectation{
			object: o, must: o.created.surely(w) && !o.removed.maybe(w),
			sizes: o.sizesDuring(w), contents: o.contentsDuring(w),
		}
	}
	return expected
}

// identifier matches the IDs of objects.
var identifier = regexp.MustCompile(`(pvc|snapshot)-[0-9a-f]+-[0-9]+-[0-9]+|sha256-[0-9a-f]+`)

// stories returns what happened to each object that a text names.
func (m *model) stories(text string) []string {
	var stories []string
	written := map[string]bool{}
	for _, id := range identifier.FindAllString(text, -1) {
		if !written[id] && m.all[id] != nil {
			written[id] = true
			stories = append(stories, m.story(id))
		}
	}
	return stories
}

// story returns what happened to an object, for people.
func (m *model) story(id string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.all[id]
	if o == nil {
		return id + " was never asked for"
	}
	text := id + ":"
	for _, line := range o.trail {
		text += "\n\t" + line
	}
	if o.source != nil {
		text += "\n\tits source " + o.source.id + ":"
		for _, line := range o.source.trail {
			text += "\n\t\t" + line
		}
	}
	return text
}

func (o *object) isMade() bool            { return true }
func (o *object) isVolume() bool          { return o.kind != meta.Committed }
func (o *object) isSnapshot() bool        { return o.kind == meta.Committed }
func (o *object) isView() bool            { return o.kind == meta.View }
func (o *object) isWritable() bool        { return o.kind == meta.Active }
func (o *object) isUnmounted() bool       { return o.isVolume() && o.staged == absent }
func (o *object) isMounted() bool         { return o.isVolume() && o.staged == present }
func (o *object) isMountedWritable() bool { return o.isWritable() && o.staged == present }
func (o *object) isUnused() bool          { return o.staged == absent }

// sourceID returns the ID of what the object is a copy of, or "".
func (o *object) sourceID() string {
	if o.source == nil {
		return ""
	}
	return o.source.id
}
