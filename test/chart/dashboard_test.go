package chart

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

const dashboardFile = "../../charts/btrfs-csi/files/dashboard.json"

// panel is what these tests look at of a panel.
type panel struct {
	ID          int    `json:"id"`
	Type        string `json:"type"`
	Title       string `json:"title"`
	Description string `json:"description"`
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct {
		Expr         string `json:"expr"`
		LegendFormat string `json:"legendFormat"`
		Format       string `json:"format"`
		Datasource   struct {
			UID string `json:"uid"`
		} `json:"datasource"`
	} `json:"targets"`
	FieldConfig struct {
		Defaults struct {
			Unit    string `json:"unit"`
			NoValue string `json:"noValue"`
		} `json:"defaults"`
	} `json:"fieldConfig"`
}

type variable struct {
	Name       string `json:"name"`
	Type       string `json:"type"`
	Definition string `json:"definition"`
}

// checkDashboard: what is shown is what drivers report, and says so where there is nothing.
func checkDashboard(t *testing.T, known map[string]labels) {
	text, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	plugins.RegisterDefaultPlugins()
	var strict dashboard.Dashboard                                                //nolint:staticcheck // the format that every Grafana loads from a file
	if err := strict.UnmarshalJSONStrict(text); err != nil && err.Error() != "" { // its list of errors is never nil
		t.Errorf("Grafana would not read it: %v", err)
	} else if err := strict.Validate(); err != nil {
		t.Errorf("Grafana would refuse it: %v", err)
	}
	var board struct {
		Panels     []panel `json:"panels"`
		Templating struct {
			List []variable `json:"list"`
		} `json:"templating"`
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	names := checkVariables(t, board.Templating.List, known)
	checkPlaces(t, board.Panels)
	for _, p := range board.Panels {
		if p.Type != "row" {
			t.Run(p.Title, func(t *testing.T) { checkPanel(t, p, names, known) })
		}
	}
	hidden := []string{"btrfs_csi_pool_read_only", "btrfs_csi_operation_duration_seconds_sum"} // the first is a condition, too
	for name := range known {
		if strings.HasPrefix(name, "btrfs_csi_") && !slices.Contains(hidden, name) && !strings.Contains(string(text), name) {
			t.Errorf("no panel shows %s", name)
		}
	}
}

var (
	labelValues = regexp.MustCompile(`^label_values\((.*), (\w+)\)$`)
	inLegend    = regexp.MustCompile(`\{\{(\w+)\}\}`)
	ofVariable  = regexp.MustCompile(`\$\{?([a-z]\w*)`)
)

// checkVariables returns the names of the variables.
func checkVariables(t *testing.T, all []variable, known map[string]labels) (names []string) {
	for _, v := range all {
		if v.Type == "query" {
			parts := labelValues.FindStringSubmatch(v.Definition)
			if parts == nil {
				t.Errorf("variable %s: %s", v.Name, v.Definition)
				continue
			}
			of, faults := checkExpression(parts[1], known)
			if len(faults) > 0 || !of[parts[2]] {
				t.Errorf("variable %s: %v, or no label %s", v.Name, faults, parts[2])
			}
		}
		names = append(names, v.Name)
	}
	return names
}

func checkPanel(t *testing.T, p panel, variables []string, known map[string]labels) {
	if p.Description == "" || p.FieldConfig.Defaults.Unit == "" || p.FieldConfig.Defaults.NoValue == "" {
		t.Errorf("it wants a description (%q), a unit (%q), and what it says without data (%q)", p.Description, p.FieldConfig.Defaults.Unit, p.FieldConfig.Defaults.NoValue)
	}
	if len(p.Targets) == 0 {
		t.Error("it has no query")
	}
	for _, target := range p.Targets {
		if target.Datasource.UID != "${datasource}" {
			t.Errorf("its data source is %q", target.Datasource.UID)
		}
		of, faults := checkExpression(target.Expr, known)
		for _, fault := range faults {
			t.Errorf("%s: %s", target.Expr, fault)
		}
		for _, used := range inLegend.FindAllStringSubmatch(target.LegendFormat, -1) {
			if !of[used[1]] {
				t.Errorf("%s: no metric has the label %q of the legend", target.Expr, used[1])
			}
		}
		for _, used := range ofVariable.FindAllStringSubmatch(target.Expr, -1) {
			if !slices.Contains(variables, used[1]) {
				t.Errorf("%s: there is no variable %q", target.Expr, used[1])
			}
		}
	}
}

// checkPlaces: no panel lies on another one or beyond the edge, and each has an ID of its own.
func checkPlaces(t *testing.T, panels []panel) {
	for i, p := range panels {
		if g := p.GridPos; g.X < 0 || g.W < 1 || g.H < 1 || g.X+g.W > 24 {
			t.Errorf("%s lies beyond the edge: %+v", p.Title, g)
		}
		for _, q := range panels[:i] {
			a, b := p.GridPos, q.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%s lies on %s", p.Title, q.Title)
			}
			if p.ID == q.ID {
				t.Errorf("%s and %s have one ID", p.Title, q.Title)
			}
		}
	}
}
