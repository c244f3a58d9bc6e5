#!/usr/bin/env bash
# Proves that the workflows are sound, and that each action in them is pinned to a commit and
# each job says what it may do and how long it may take.
set -euo pipefail
cd "$(dirname "$0")/.."

"${ACTIONLINT:?names actionlint}" -shellcheck= -pyflakes=
failed=0
while IFS= read -r line; do
	echo "$line: an action is pinned as owner/name@<40 hex digits> # vX.Y.Z" >&2
	failed=1
done < <(grep -nE '^ *(- )?uses:' .github/workflows/*.yml | grep -vE 'uses: [A-Za-z0-9_./-]+@[0-9a-f]{40} # v[0-9]+\.[0-9]+\.[0-9]+$')
for file in .github/workflows/*.yml; do
	jobs=$(grep -c '^    runs-on:' "$file")
	for key in timeout-minutes permissions; do
		[ "$(grep -c "^    $key:" "$file")" = "$jobs" ] || { echo "$file: each job needs $key" >&2; failed=1; }
	done
	grep -q '^permissions: {}$' "$file" || { echo "$file: permissions: {} is wanted for all, and what a job needs in the job" >&2; failed=1; }
	grep -q '^concurrency:$' "$file" || { echo "$file: it needs a concurrency group" >&2; failed=1; }
	# A value that somebody outside chose is no part of a script: it comes by env.
	if awk '/^ *(- )?run:/ { at = match($0, /[^ -]/); in_run = 1; if (/\$\{\{/) print FILENAME ":" FNR; next }
		in_run && match($0, /[^ ]/) && RSTART <= at { in_run = 0 }
		in_run && /\$\{\{/ { print FILENAME ":" FNR }' "$file" | grep .; then
		echo "$file: an expression stands in a script: pass it by env" >&2
		failed=1
	fi
done
exit $failed
