#!/usr/bin/env bash
# Puts promtool into a file: the one of this machine, or that of Debian's package of Prometheus,
# which is unpacked and not installed, since installing it would start a server.
set -euo pipefail

[ $# = 1 ] || { echo "usage: $0 FILE" >&2; exit 2; }

if there=$(command -v promtool); then
	ln -sf "$there" "$1"
	exit
fi
if ! command -v apt-get > /dev/null; then
	echo "promtool is missing: install the program of that name, which comes with Prometheus" >&2
	exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
file=$(realpath -m "$1")
cd "$work"
if ! apt-get download -q prometheus 2> error; then
	[ "$(id -u)" = 0 ] || { cat error >&2; echo "promtool is missing: run apt-get update, or make deps, as root first" >&2; exit 1; }
	apt-get update -q
	apt-get download -q prometheus
fi
dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool
mkdir -p "$(dirname "$file")"
mv usr/bin/promtool "$file"
