#!/usr/bin/env bash
# Proves that the packages for tools on other systems build there, without cgo.
set -euo pipefail
cd "$(dirname "$0")/.."

for system in linux darwin windows; do
	for machine in amd64 arm64; do
		echo "== $system/$machine"
		CGO_ENABLED=0 GOOS=$system GOARCH=$machine go build ./api/... ./pkg/meta ./pkg/cluster/client ./pkg/cluster/prune
	done
done
