package chart

import (
	"fmt"
	"maps"
	"regexp"
	"slices"

	"github.com/prometheus/common/model"
	plabels "github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// variables are those of Grafana, and values that make an expression whole.
var variables = regexp.MustCompile(`\$(__rate_interval|__range|__interval)`)

// checkExpression returns what an expression names that the known metrics do not have, and the
// labels that its metrics have.
func checkExpression(text string, known map[string]labels) (of map[string]bool, faults []string) {
	expression, err := parser.NewParser(parser.Options{}).ParseExpr(variables.ReplaceAllString(text, "5m"))
	if err != nil {
		return nil, []string{err.Error()}
	}
	of = map[string]bool{}
	parser.Inspect(expression, func(node parser.Node, _ []parser.Node) error {
		if selector, ok := node.(*parser.VectorSelector); ok {
			metric, there := known[selector.Name]
			if !there {
				faults = append(faults, fmt.Sprintf("there is no metric %q", selector.Name))
				return nil
			}
			maps.Copy(of, keys(metric))
			faults = append(faults, checkMatchers(selector.Name, metric, selector.LabelMatchers)...)
		}
		return nil
	})
	parser.Inspect(expression, func(node parser.Node, _ []parser.Node) error {
		for _, name := range groupingOf(node) {
			if !of[name] {
				faults = append(faults, fmt.Sprintf("none of the metrics has the label %q", name))
			}
		}
		return nil
	})
	return of, faults
}

// groupingOf returns the labels that a node of an expression groups or matches by.
func groupingOf(node parser.Node) []string {
	switch n := node.(type) {
	case *parser.AggregateExpr:
		return n.Grouping
	case *parser.BinaryExpr:
		if n.VectorMatching != nil {
			return slices.Concat(n.VectorMatching.MatchingLabels, n.VectorMatching.Include)
		}
	}
	return nil
}

// checkMatchers returns the labels that a metric does not have, and the values that a label with
// a fixed set of them does not.
func checkMatchers(name string, metric labels, matchers []*plabels.Matcher) (faults []string) {
	for _, m := range matchers {
		values, there := metric[m.Name]
		switch {
		case m.Name == model.MetricNameLabel:
		case !there:
			faults = append(faults, fmt.Sprintf("%s has no label %q", name, m.Name))
		case (m.Type == plabels.MatchEqual || m.Type == plabels.MatchNotEqual) && (m.Name == "kind" || m.Name == "condition" || m.Name == "type") && !values[m.Value]:
			faults = append(faults, fmt.Sprintf("%s has no label %s=%q, it has %v", name, m.Name, m.Value, slices.Sorted(maps.Keys(values))))
		}
	}
	return faults
}

func keys(l labels) map[string]bool {
	names := map[string]bool{}
	for name := range l {
		names[name] = true
	}
	return names
}
