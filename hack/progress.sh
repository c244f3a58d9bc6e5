#!/usr/bin/env bash
# Runs a command and prints a text at its start and every 30 s, because Go prints nothing while it
# compiles, and little while it tests.
set -euo pipefail

[ $# -gt 1 ] || { echo "usage: $0 WHAT COMMAND..." >&2; exit 2; }
what=$1
shift

heartbeat() {
	exec {nothing}<> <(:)
	until read -rt 30 -u "$nothing"; do
		kill -0 $$ 2>/dev/null || exit 0
		echo "-- $what, for $SECONDS s" >&2
	done
}

echo "-- $what" >&2
heartbeat &
trap 'kill %1 2>/dev/null || true' EXIT
"$@"
