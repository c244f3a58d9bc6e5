package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// row is one comparison. The file of the benchmark is an array of rows.
type row struct {
	Topic     string  `json:"topic"`
	Operation string  `json:"operation"`
	Inflight  int     `json:"inflight"`
	Quota     string  `json:"quota"`
	Existing  int     `json:"existing"` // volumes that existed before
	Ours      float64 `json:"ours"`     // the median of the rounds, in Unit
	OursName  string  `json:"ours_name"`
	Peer      float64 `json:"peer"` // the same
	PeerName  string  `json:"peer_name"`
	Ratio     float64 `json:"ratio"` // above 1: ours is better, for any unit
	Unit      string  `json:"unit"`
	Better    string  `json:"better"`            // higher or lower
	RatioMin  float64 `json:"ratio_min"`         // of the rounds
	RatioMax  float64 `json:"ratio_max"`         // of the rounds
	Rounds    int     `json:"rounds"`            //
	Want      float64 `json:"want,omitempty"`    // the aim: the ratio is at least this
	Exactly   float64 `json:"exactly,omitempty"` // the aim: ours is this

	// Commits of the filesystem per operation.
	OursCommits float64 `json:"ours_commits,omitempty"`
	PeerCommits float64 `json:"peer_commits,omitempty"`

	// For a point of a curve: X existing objects of XName.
	X     float64 `json:"x,omitempty"`
	XName string  `json:"x_name,omitempty"`

	Machine machine `json:"machine"`
}

const (
	higher = "higher"
	lower  = "lower"
)

// unit is the unit of the values of a row.
type unit struct{ name, better string }

var (
	perSecond    = unit{"operations/s", higher}
	milliseconds = unit{"ms", lower}
	commitsEach  = unit{"commits/operation", lower}
	mebibytes    = unit{"MiB", lower}
	descriptors  = unit{"open files", lower}
)

// name returns the name that --only matches.
func (r row) name() string {
	name := fmt.Sprintf("%s/%s/%d/%s/%d/%s/%s", r.Topic, r.Operation, r.Inflight, r.Quota, r.Existing, r.OursName, r.PeerName)
	if r.XName != "" {
		name += fmt.Sprintf("/%g %s", r.X, r.XName)
	}
	return name
}

// reached reports whether the row reaches its aim; true if it has none.
func (r row) reached() bool {
	if r.Exactly > 0 {
		return r.Ours == r.Exactly && r.RatioMin == r.RatioMax // equal in all rounds
	}
	return r.Ratio >= r.Want
}

// judged reports whether the row has an aim.
func (r row) judged() bool { return r.Want > 0 || r.Exactly > 0 }

// compare computes medians and ratios from the values of the rounds. ours[k] and peer[k] are from the
// same round.
func (r row) compare(u unit, ours, peer []float64) row {
	r.Unit, r.Better, r.Rounds = u.name, u.better, len(ours)
	r.Ours, r.Peer = median(ours), median(peer)
	r.Ratio = u.ratio(r.Ours, r.Peer)
	for k := range ours {
		ratio := u.ratio(ours[k], peer[k])
		if k == 0 || ratio < r.RatioMin {
			r.RatioMin = ratio
		}
		r.RatioMax = max(r.RatioMax, ratio)
	}
	return r
}

// withCommits adds the numbers of commits.
func (r row) withCommits(ours, peer []float64) row {
	r.OursCommits, r.PeerCommits = median(ours), median(peer)
	return r
}

func (u unit) ratio(ours, peer float64) float64 {
	if u.better == lower {
		ours, peer = peer, ours
	}
	if peer == 0 {
		return 0 // no ratio exists, and JSON has no infinity
	}
	return ours / peer
}

// writeRows replaces the file atomically.
func writeRows(path string, rows []row) error {
	lines := make([]string, len(rows))
	for i, r := range rows {
		line, err := json.Marshal(r)
		if err != nil {
			return err
		}
		lines[i] = string(line)
	}
	data := "[\n" + strings.Join(lines, ",\n") + "\n]\n"
	next := path + ".new"
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(next, []byte(data), 0o644); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// readRows reads files of writeRows. The last row of a name replaces earlier ones, so that a part can
// be measured again.
func readRows(paths []string) ([]row, error) {
	var rows []row
	at := map[string]int{}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		var found []row
		if err := json.Unmarshal(data, &found); err != nil {
			return nil, fmt.Errorf("%s: what bench --output wrote is wanted: %w", path, err)
		}
		for _, r := range found {
			if len(rows) > 0 && !r.Machine.like(rows[0].Machine) {
				return nil, fmt.Errorf("%s: it was measured on another machine than %s: numbers of one machine alone can be compared", path, paths[0])
			}
			if i, ok := at[r.name()]; ok {
				rows[i] = r
				continue
			}
			at[r.name()] = len(rows)
			rows = append(rows, r)
		}
	}
	return rows, nil
}
