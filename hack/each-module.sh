#!/usr/bin/env bash
# Runs a command in each Go module of the repository. Fails if it failed in one.
set -euo pipefail
cd "$(dirname "$0")/.."

failed=0
while IFS= read -r file; do
	module=$(dirname "$file")
	echo "== $module: $*"
	(cd "$module" && "$@") || failed=1
done < <(find . -name go.mod -not -path './bin/*' -not -path './dist/*' | sort)
exit $failed
