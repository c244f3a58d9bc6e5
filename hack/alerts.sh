#!/usr/bin/env bash
# The alerts of the chart are such that Prometheus takes them, and each fires when it should, and
# only then: as they are in their file, and as the chart renders them.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${HELM:?is the path of helm}" "${PROMTOOL:?is the path of promtool}"

alerts=charts/btrfs-csi/files/alerts.yaml
cases=test/chart/testdata/alerts.yaml
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cp $alerts "$work/file.yaml"
"$HELM" template release charts/btrfs-csi --kube-version 1.37.2 --set prometheusRule.enabled=true --show-only templates/monitoring.yaml |
	sed -n '/^  groups:$/,$s/^  //p' > "$work/rendered.yaml"
for rules in file rendered; do
	"$PROMTOOL" check rules --lint=all --lint-fatal "$work/$rules.yaml" > "$work/output" || { cat "$work/output" >&2; echo "$alerts, $rules: see above" >&2; exit 1; }
	sed "s|^rule_files: .*|rule_files: [$work/$rules.yaml]|" $cases > "$work/cases.yaml"
	"$PROMTOOL" test rules "$work/cases.yaml" > "$work/output" 2>&1 || { cat "$work/output" >&2; echo "$cases, $rules: see above" >&2; exit 1; }
done
