package chart

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const (
	alertsFile   = "../../charts/btrfs-csi/files/alerts.yaml"
	alertTests   = "testdata/alerts.yaml"
	runbooks     = "../../docs/runbooks"
	runbooksFrom = "https://github.com/btrfs-csi/btrfs-csi/blob/main/docs/runbooks/"
)

// rule is an alert, as Prometheus reads it.
type rule struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

func readAlerts(t *testing.T) []rule {
	var file struct {
		Groups []struct {
			Name  string `yaml:"name"`
			Rules []rule `yaml:"rules"`
		} `yaml:"groups"`
	}
	readYAML(t, alertsFile, &file)
	var all []rule
	for _, group := range file.Groups {
		all = append(all, group.Rules...)
	}
	if len(all) == 0 {
		t.Fatalf("%s has no alerts", alertsFile)
	}
	return all
}

func readYAML(t *testing.T, path string, into any) {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	decoder := yaml.NewDecoder(f)
	decoder.KnownFields(true)
	if err := decoder.Decode(into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

var usedLabel = regexp.MustCompile(`\$labels\.([a-z_]+)`)

// checkAlerts: an alert has metrics and labels that there are, and what a person needs at night.
func checkAlerts(t *testing.T, known map[string]labels) {
	pages := pagesOf(t)
	for _, alert := range readAlerts(t) {
		t.Run(alert.Alert, func(t *testing.T) {
			of, faults := checkExpression(alert.Expr, known)
			for _, fault := range faults {
				t.Error(fault)
			}
			if !slices.Contains([]string{"critical", "warning"}, alert.Labels["severity"]) {
				t.Errorf("its severity is %q", alert.Labels["severity"])
			}
			for _, name := range []string{"summary", "description"} {
				text := alert.Annotations[name]
				if text == "" {
					t.Errorf("it has no %s", name)
				}
				for _, used := range usedLabel.FindAllStringSubmatch(text, -1) {
					if !of[used[1]] {
						t.Errorf("%s: no metric has the label %q", name, used[1])
					}
				}
			}
			if want := runbooksFrom + alert.Alert + ".md"; alert.Annotations["runbook_url"] != want {
				t.Errorf("its runbook is %s, want %s", alert.Annotations["runbook_url"], want)
			}
			if pages[alert.Alert] == "" {
				t.Errorf("there is no page %s", filepath.Join(runbooks, alert.Alert+".md"))
			}
			for _, part := range []string{"# " + alert.Alert + "\n", "**You see:**", "**It means:**", "**Look at**", "**Do:**"} {
				if !strings.Contains(pages[alert.Alert], part) {
					t.Errorf("its runbook lacks %q", part)
				}
			}
			if !strings.Contains(pages["README"], "| ["+alert.Alert+"]("+alert.Alert+".md) | "+alert.Labels["severity"]+" |") {
				t.Errorf("the list of runbooks does not have it as %s", alert.Labels["severity"])
			}
		})
		delete(pages, alert.Alert)
	}
	delete(pages, "README")
	for page := range pages {
		t.Errorf("%s is the runbook of no alert", page)
	}
}

// pagesOf returns the text of each runbook.
func pagesOf(t *testing.T) map[string]string {
	files, err := filepath.Glob(filepath.Join(runbooks, "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	pages := map[string]string{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		pages[strings.TrimSuffix(filepath.Base(file), ".md")] = string(text)
	}
	return pages
}

// TestEachAlertHasItsCases: promtool runs the cases; here each alert has one in which it fires and
// one in which it does not.
func TestEachAlertHasItsCases(t *testing.T) {
	var file struct {
		RuleFiles          []string `yaml:"rule_files"`
		EvaluationInterval string   `yaml:"evaluation_interval"`
		Tests              []struct {
			Name   string `yaml:"name"`
			Every  string `yaml:"interval"`
			Series []any  `yaml:"input_series"`
			Cases  []struct {
				At     string `yaml:"eval_time"`
				Alert  string `yaml:"alertname"`
				Firing []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		} `yaml:"tests"`
	}
	readYAML(t, alertTests, &file)
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, test := range file.Tests {
		for _, c := range test.Cases {
			if len(c.Firing) > 0 {
				fires[c.Alert] = true
			} else {
				silent[c.Alert] = true
			}
		}
	}
	for _, alert := range readAlerts(t) {
		if !fires[alert.Alert] || !silent[alert.Alert] {
			t.Errorf("%s fires in a case: %v; and does not in one: %v", alert.Alert, fires[alert.Alert], silent[alert.Alert])
		}
	}
}
