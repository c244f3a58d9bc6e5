#!/usr/bin/env bash
# Generates the custom resource definitions of the chart and the deep copy methods from the types
# of the API, or proves that they are up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

types=api/v1alpha1
crds=charts/btrfs-csi/files/crds

generate() { # directory for the definitions, directory for the methods
	"${CONTROLLER_GEN:?names controller-gen}" crd object "paths=./$types" "output:crd:dir=$1" "output:object:dir=$2"
}

case ${1:-} in
update) generate "$crds" "$types" ;;
verify)
	fresh=$(mktemp -d)
	trap 'rm -rf "$fresh"' EXIT
	generate "$fresh/crds" "$fresh/types"
	diff -r "$crds" "$fresh/crds" && diff "$types/zz_generated.deepcopy.go" "$fresh/types/zz_generated.deepcopy.go" || {
		echo "the API has changed: run make update" >&2
		exit 1
	}
	;;
*) echo "usage: $0 update|verify" >&2; exit 2 ;;
esac
