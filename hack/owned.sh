#!/usr/bin/env bash
# Runs a command that writes to bin or dist. Afterwards all files there belong to the owner of the
# checkout, also if the command fails. So the owner can build and clean after a "sudo make".
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)

give() {
	for dir in "$root/bin" "$root/dist"; do
		[ ! -d "$dir" ] || chown --recursive --no-dereference --reference="$root" "$dir"
	done
}

[ "$(id -u)" != 0 ] || trap give EXIT
"$@"
