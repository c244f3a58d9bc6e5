#!/usr/bin/env bash
# Fails for a relative link of a Markdown file that leads to no file.
set -euo pipefail
cd "$(dirname "$0")/.."

broken=0
while IFS= read -r file; do
	while IFS= read -r link; do
		path=${link%%#*}
		if [ -n "$path" ] && [ ! -e "$(dirname "$file")/$path" ]; then
			echo "$file: $link leads nowhere" >&2
			broken=1
		fi
	done < <(grep -oE '\]\([^)]+\)' "$file" | sed -E 's/^\]\((.*)\)$/\1/' | grep -vE '^[a-z]+:' || true)
done < <(find . -name '*.md' -not -path './bin/*' | sort)
exit $broken
