#!/usr/bin/env bash
# Runs a command beside a number of busy loops, which end when the command ends.
set -euo pipefail

[ $# -gt 1 ] || { echo "usage: $0 LOOPS COMMAND..." >&2; exit 2; }
loops=$1
shift

pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
for ((i = 0; i < loops; i++)); do
	# Each loop checks whether this script lives, because a killed script runs no trap.
	(trap - EXIT; while kill -0 $$ 2>/dev/null; do for _ in {1..10000}; do :; done; done) &
	pids+=($!)
done
"$@"
