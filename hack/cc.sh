#!/usr/bin/env bash
# Prints the C compiler of this machine for a GOARCH.
set -euo pipefail

case "$1" in
"$(go env GOHOSTARCH)") echo gcc ;;
amd64) echo x86_64-linux-gnu-gcc ;;
arm64) echo aarch64-linux-gnu-gcc ;;
*) echo "no C compiler is known for $1; amd64 and arm64 are" >&2; exit 1 ;;
esac
