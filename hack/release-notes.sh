#!/usr/bin/env bash
# Prints what CHANGELOG.md says of a version. Fails where the changelog has no such section,
# or where the chart is not of that version.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# = 1 ] || { echo "usage: $0 vX.Y.Z" >&2; exit 2; }
tag=$1

chart=$(awk '$1 == "version:" {print $2; exit}' charts/btrfs-csi/Chart.yaml)
image=$(awk '$1 == "appVersion:" {print $2; exit}' charts/btrfs-csi/Chart.yaml)
if [ "v$chart" != "$tag" ] || [ "$image" != "$tag" ]; then
	echo "$tag: charts/btrfs-csi/Chart.yaml has version $chart and appVersion $image; ${tag#v} and $tag are wanted" >&2
	exit 1
fi
notes=$(awk -v heading="## [${tag#v}]" '
	/^## / { within = index($0, heading) == 1; next }
	within { print }
' CHANGELOG.md)
if [ -z "${notes//[[:space:]]/}" ]; then
	echo "$tag: CHANGELOG.md has no section that begins with \"## [${tag#v}]\"" >&2
	exit 1
fi
printf '%s\n' "$notes"
