#!/usr/bin/env bash
# Builds the released image for amd64 once more, from a copy of the checkout at another place,
# in another environment, and proves that it comes out the same.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# = 2 ] || { echo "usage: $0 VERSION IMAGE" >&2; exit 2; }
archive=dist/btrfs-csi-image-$1-amd64.tar

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from - | tar --extract --directory "$work"
cp -r .git "$work"
# Debian's packages are downloaded once: what it has may change meanwhile.
for cache in dist/{toolchain,image/amd64}/{apt,snapshot}; do
	[ ! -d $cache ] || { mkdir -p "$work/$cache" && cp -r $cache/. "$work/$cache"; }
done

umask 077
TZ=Pacific/Apia LC_ALL=C.UTF-8 \
	make --no-print-directory -C "$work" release-images RELEASE_IMAGES=image-amd64 VERSION="$1" IMAGE="$2"
cmp "$archive" "$work/$archive"
echo "$archive comes out the same at another place"
