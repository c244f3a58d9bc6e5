package model

import (
	"fmt"
	"regexp"
	"slices"
	"sync"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
	"github.com/btrfs-csi/btrfs-csi/test/reliability/files"
)

// Position is a place in the journal, counted from 1.
type Position int

// Span is a request: the positions at which a worker sent it first and got its final answer.
// 0 means not yet.
type Span struct{ Asked, Answered Position }

// Window is two positions, between which something happened at an unknown instant.
type Window struct{ From, To Position }

// surely reports whether the request had been answered at the start of w.
func (s Span) surely(w Window) bool { return s.Answered != 0 && s.Answered <= w.From }

// maybe reports whether the driver may have carried the request out before the end of w.
func (s Span) maybe(w Window) bool { return s.Asked != 0 && s.Asked <= w.To }

// Timeline is the values of one property of an object, such as its sizes, in order.
type Timeline[T any] []*Event[T]

// Event is one value of a Timeline, and the request for it.
type Event[T any] struct {
	Span
	Value T
}

// during returns the values that the property may have had in w: the last one that was surely
// set, and all that may have been set after it.
func (t Timeline[T]) during(w Window) []T {
	first := 0
	for i, e := range t {
		if e.surely(w) {
			first = i
		}
	}
	var values []T
	for _, e := range t[first:] {
		if e.maybe(w) {
			values = append(values, e.Value)
		}
	}
	return values
}

// Object is a volume or a snapshot, from the first request for it on. No two objects have the
// same name. Model.Mu protects all fields but Name and ID.
type Object struct {
	Kind       meta.Kind
	Name, ID   string
	Source     *Object
	Parameters map[string]string

	Created, Removed Span
	Sizes            Timeline[int64]
	Contents         Timeline[files.Content] // empty for a copy until its request is answered

	Busy              bool // a worker has it; others may only copy it
	Staged, Published Presence
	trail             []string // its requests, answers and writes
}

// Asked returns the parameters that its record must have.
func (o *Object) Asked() meta.Parameters {
	return meta.Parameters{Compression: o.Parameters["compression"], NoDataCow: o.Parameters["nodatacow"] == "true"}
}

// Properties returns the properties that its root directory must have: those of its own
// parameters, or else of its source.
func (o *Object) Properties() meta.Parameters {
	if o.Source != nil && len(o.Parameters) == 0 {
		return o.Source.Properties()
	}
	return o.Asked()
}

// Presence says whether a mount exists.
type Presence int

// A mount is Unsure while a request that changes it is not answered.
const (
	Absent Presence = iota
	Unsure
	Present
)

// Model is the journal of all requests and answers. Only the worker that has marked an object
// as busy sends requests that change it. So the requests for one object follow one another,
// or are several equal ones at once.
type Model struct {
	Mu     sync.Mutex // protects what follows, and all objects
	now    Position
	All    map[string]*Object // by ID
	Living []*Object          // objects whose removal was not answered
	moment *Moment            // nil if no one waits for one
	Passed func(Position)     // called at each position, with Mu locked; may be nil
}

// New returns an empty model.
func New() *Model { return &Model{now: 1, All: map[string]*Object{}} }

// Begun returns a model in which only a copy of a volume of another model exists, and that copy.
func Begun(volume *Object) (*Model, *Object) {
	m := New()
	made := Span{m.now, m.now}
	o := &Object{Kind: volume.Kind, Name: volume.Name, ID: volume.ID, Parameters: volume.Parameters, Created: made}
	o.Sizes = Timeline[int64]{{made, volume.Sizes[len(volume.Sizes)-1].Value}}
	o.Contents = Timeline[files.Content]{{made, volume.Contents[len(volume.Contents)-1].Value}}
	m.All[o.ID], m.Living = o, []*Object{o}
	return m, o
}

// step goes on to the next position. The caller has locked Mu.
func (m *Model) step() {
	m.now++
	if m.Passed != nil {
		m.Passed(m.now)
	}
}

// Here returns the present position.
func (m *Model) Here() Position {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	m.step()
	return m.now
}

// Instant returns the window of the present position. It is for when no request is in flight.
func (m *Model) Instant() Window {
	return Exactly(m.Here())
}

// Exactly returns the window of one position.
func Exactly(p Position) Window { return Window{p, p} }

// Ask records that a request is about to be sent.
func (m *Model) Ask(o *Object, s *Span, format string, args ...any) {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	m.step()
	s.Asked = m.now
	m.Record(o, "ask "+fmt.Sprintf(format, args...))
}

// Answer records that a request was answered.
func (m *Model) Answer(o *Object, s *Span, what Deed) {
	m.Mu.Lock()
	m.step()
	s.Answered = m.now
	m.Record(o, string(what))
	m.Mu.Unlock()
	m.pause(what)
}

// Deed is a kind of change that was acknowledged.
type Deed string

// The kinds of deeds.
const (
	Made       Deed = "made"
	Configured Deed = "made with properties" // an empty volume, so that no snapshot ioctl has committed it
	Removed    Deed = "removed"
	Expanded   Deed = "expanded"
	Written    Deed = "written"
)

// Deeds lists all kinds.
var Deeds = []Deed{Made, Configured, Removed, Expanded, Written}

// Moment is the time right after a deed was acknowledged. The worker that got the answer waits
// until Passed is closed.
type Moment struct {
	deed   Deed
	Came   chan struct{} // closed at the acknowledgement
	Passed chan struct{} // closed by the one that called Await
}

// Await returns the Moment of the next deed of a kind.
func (m *Model) Await(d Deed) *Moment {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	m.moment = &Moment{d, make(chan struct{}), make(chan struct{})}
	return m.moment
}

// Awaits reports whether Await was called for a deed of a kind that has not happened yet.
func (m *Model) Awaits(d Deed) bool {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	return m.moment != nil && m.moment.deed == d
}

// pause stops the caller if Await was called for its deed, until that Moment has passed.
func (m *Model) pause(d Deed) {
	m.Mu.Lock()
	now := m.moment
	if now == nil || now.deed != d {
		m.Mu.Unlock()
		return
	}
	m.moment = nil
	m.Mu.Unlock()
	close(now.Came)
	<-now.Passed
}

// longestTrail is the number of lines that the trail of an object keeps.
const longestTrail = 60

// Record adds a line to the trail of an object. The caller has locked Mu.
func (m *Model) Record(o *Object, what string) {
	if len(o.trail) == longestTrail {
		o.trail = slices.Delete(o.trail, 1, 2) // the first line names the object's kind and source
	}
	o.trail = append(o.trail, fmt.Sprintf("%d %s", m.now, what))
}

// Declare records the first request for an object. The caller has locked Mu.
func (m *Model) Declare(o *Object) {
	m.step()
	o.Created.Asked = m.now
	for _, e := range o.Sizes {
		e.Span = o.Created
	}
	for _, e := range o.Contents {
		e.Span = o.Created
	}
	o.Busy = true
	m.All[o.ID] = o
	m.Living = append(m.Living, o)
	from := ""
	if o.Source != nil {
		from = " of " + o.Source.ID
	}
	m.Record(o, fmt.Sprintf("ask create %s%s %v", o.Kind, from, o.Parameters))
}

// Exists records that an object was made, with the size in the answer and the content on disk.
func (m *Model) Exists(o *Object, size int64, c files.Content) error {
	if err := m.confirm(o, size, c); err != nil {
		return err
	}
	m.pause(Made)
	if o.Source == nil && len(o.Parameters) > 0 {
		m.pause(Configured)
	}
	return nil
}

func (m *Model) confirm(o *Object, size int64, c files.Content) error {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	m.step()
	w := Window{o.Created.Asked, m.now}
	if sizes := o.sizesDuring(w); !slices.Contains(sizes, size) {
		return fmt.Errorf("%s was made with %d bytes, wanted is one of %v", o.ID, size, sizes)
	}
	if contents := o.contentsDuring(w); !slices.Contains(contents, c) {
		return fmt.Errorf("%s was made with %s, wanted is one of %v", o.ID, c, contents)
	}
	o.Created.Answered = m.now
	o.Sizes = Timeline[int64]{{o.Created, size}}
	o.Contents = Timeline[files.Content]{{o.Created, c}}
	m.Record(o, fmt.Sprintf("made, %d bytes, %s", size, c))
	return nil
}

// Refused records that an object will not be made.
func (m *Model) Refused(o *Object) {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	m.step()
	o.Removed = Span{m.now, m.now}
	m.Record(o, "refused")
	m.bury(o)
}

// Gone records that the removal of an object was answered.
func (m *Model) Gone(o *Object) {
	m.Answer(o, &o.Removed, Removed)
	m.Mu.Lock()
	defer m.Mu.Unlock()
	m.bury(o)
}

// bury takes an object out of Living. The caller has locked Mu.
func (m *Model) bury(o *Object) {
	m.Living = slices.DeleteFunc(m.Living, func(other *Object) bool { return other == o })
}

// Release marks an object as no longer busy.
func (m *Model) Release(o *Object) {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	o.Busy = false
}

// sizesDuring returns the sizes that the object may have had in w. The caller has locked Mu.
func (o *Object) sizesDuring(w Window) []int64 {
	if len(o.Sizes) > 0 {
		return o.Sizes.during(w)
	}
	return o.Source.sizesDuring(Window{o.Created.Asked, w.To})
}

// contentsDuring returns the contents that the object may have had in w. A copy of a volume that
// a pod writes has the content of one instant. The caller has locked Mu.
func (o *Object) contentsDuring(w Window) []files.Content {
	if len(o.Contents) > 0 {
		return o.Contents.during(w)
	}
	return o.Source.contentsDuring(Window{o.Created.Asked, w.To})
}

// Expectation is what the model knows of an object at one instant.
type Expectation struct {
	Object   *Object
	Must     bool // it has to exist; otherwise it may
	Sizes    []int64
	Contents []files.Content
}

// Expect returns all objects that may exist in w, by ID.
func (m *Model) Expect(w Window) map[string]Expectation {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	expected := map[string]Expectation{}
	for id, o := range m.All {
		if !o.Created.maybe(w) || o.Removed.surely(w) {
			continue
		}
		expected[id] = Expectation{
			Object: o, Must: o.Created.surely(w) && !o.Removed.maybe(w),
			Sizes: o.sizesDuring(w), Contents: o.contentsDuring(w),
		}
	}
	return expected
}

// identifier matches the IDs of objects.
var identifier = regexp.MustCompile(`(pvc|snapshot)-[0-9a-f]+-[0-9]+-[0-9]+|sha256-[0-9a-f]+`)

// Stories returns what happened to each object that a text names.
func (m *Model) Stories(text string) []string {
	var stories []string
	written := map[string]bool{}
	for _, id := range identifier.FindAllString(text, -1) {
		if !written[id] && m.All[id] != nil {
			written[id] = true
			stories = append(stories, m.story(id))
		}
	}
	return stories
}

// story returns what happened to an object, for people.
func (m *Model) story(id string) string {
	m.Mu.Lock()
	defer m.Mu.Unlock()
	o := m.All[id]
	if o == nil {
		return id + " was never asked for"
	}
	text := id + ":"
	for _, line := range o.trail {
		text += "\n\t" + line
	}
	if o.Source != nil {
		text += "\n\tits source " + o.Source.ID + ":"
		for _, line := range o.Source.trail {
			text += "\n\t\t" + line
		}
	}
	return text
}

func (o *Object) IsMade() bool            { return true }
func (o *Object) IsVolume() bool          { return o.Kind != meta.Committed }
func (o *Object) IsSnapshot() bool        { return o.Kind == meta.Committed }
func (o *Object) IsView() bool            { return o.Kind == meta.View }
func (o *Object) IsWritable() bool        { return o.Kind == meta.Active }
func (o *Object) IsUnmounted() bool       { return o.IsVolume() && o.Staged == Absent }
func (o *Object) IsMounted() bool         { return o.IsVolume() && o.Staged == Present }
func (o *Object) IsMountedWritable() bool { return o.IsWritable() && o.Staged == Present }
func (o *Object) IsUnused() bool          { return o.Staged == Absent }

// SourceID returns the ID of what the object is a copy of, or "".
func (o *Object) SourceID() string {
	if o.Source == nil {
		return ""
	}
	return o.Source.ID
}
