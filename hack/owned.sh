#!/usr/bin/env bash
# Runs a command that puts something into bin or dist. What root has put there belongs
# to the owner of the checkout afterwards, however the command ends, so that they can
# build and clean after a "sudo make".
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)

give() {
	for dir in "$root/bin" "$root/dist"; do
		[ ! -d "$dir" ] || chown --recursive --no-dereference --reference="$root" "$dir"
	done
}

[ "$(id -u)" != 0 ] || trap give EXIT
"$@"
