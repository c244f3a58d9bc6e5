#!/usr/bin/env bash
# Runs a command in every Go module of the repository; stops at the first that fails.
set -euo pipefail
cd "$(dirname "$0")/.."

while IFS= read -r file; do
	module=$(dirname "$file")
	echo "== $module: $*"
	(cd "$module" && "$@")
done < <(find . -name go.mod -not -path './bin/*' | sort)
