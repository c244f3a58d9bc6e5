#!/usr/bin/env bash
# Copies the chart that users upgrade from into a directory: the chart of the last release or,
# before the first release, of the commit that added the chart.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# = 1 ] || { echo "usage: $0 DIRECTORY" >&2; exit 2; }
chart=charts/btrfs-csi

# A tag of HEAD is the release that is being made.
from=$(git describe --tags --abbrev=0 --match 'v[0-9]*' HEAD^ 2>/dev/null || echo a2e9364)
rm -rf "$1"
mkdir -p "$1"
if git cat-file -e "$from:$chart" 2>/dev/null; then
	git archive "$from:$chart" | tar -x -C "$1"
	echo "the previous chart is that of $from"
else
	cp -r "$chart/." "$1"
	echo "the previous chart is the present one: this clone lacks $from, a shallow one does" >&2
fi
