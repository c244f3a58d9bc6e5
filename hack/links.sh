#!/usr/bin/env bash
# Fails if a link leads to no file, or to no heading of one. It checks relative links in Markdown
# files, and absolute links to this repository, which files that are shown elsewhere need.
set -euo pipefail
cd "$(dirname "$0")/.."

home='https://github\.com/btrfs-csi/btrfs-csi/(blob|tree|raw)/main'
broken=0

headings() { # file; the anchors that GitHub makes of them
	grep -E '^#+ ' "$1" | sed -E 's/^#+ +//; s/[^[:alnum:] _-]//g; s/ /-/g' | tr '[:upper:]' '[:lower:]'
}

check() { # file, link, path that it leads to
	local anchor=
	[[ $2 != *'#'* ]] || anchor=${2#*#}
	if [ ! -e "$3" ]; then
		echo "$1: $2 leads nowhere" >&2
		broken=1
	elif [[ -n $anchor && $3 == *.md ]] && ! grep -qxF -- "$anchor" <<< "$(headings "$3")"; then
		echo "$1: $2: $3 has no such heading" >&2
		broken=1
	fi
}

while IFS= read -r file; do
	while IFS= read -r link; do
		path=${link%%#*}
		check "$file" "$link" "$([ -n "$path" ] && echo "$(dirname "$file")/$path" || echo "$file")"
	done < <(grep -oE '\]\([^) ]+\)' "$file" | sed -E 's/^\]\((.*)\)$/\1/' | grep -vE '^[a-z]+:' || true)
done < <(find . -name '*.md' -not -path './bin/*' | sort)

while IFS=: read -r file link; do
	path=${link#*/main/}
	check "$file" "$link" "./${path%%#*}"
done < <(grep -roE "$home/[A-Za-z0-9_./-]+(#[a-z0-9_-]+)?" . --include='*.md' --include='*.yaml' --include='*.json' --include='*.txt' --include='*.go' \
	--exclude-dir=bin --exclude-dir=dist --exclude-dir=.git | sort -u)
exit $broken
