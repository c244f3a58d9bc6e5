#!/usr/bin/env bash
# Runs a command in every Go module of the repository; fails if it failed in any.
set -euo pipefail
cd "$(dirname "$0")/.."

failed=0
while IFS= read -r file; do
	module=$(dirname "$file")
	echo "== $module: $*"
	(cd "$module" && "$@") || failed=1
done < <(find . -name go.mod -not -path './bin/*' | sort)
exit $failed
