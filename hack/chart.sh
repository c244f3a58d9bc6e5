#!/usr/bin/env bash
# `update` generates the manifests and the table of values from the chart, and vendors the snapshot
# CRDs into it. `verify` proves that these are up to date, and runs chart-test.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# = 1 ] || { echo "usage: HELM=path $0 update|verify" >&2; exit 2; }
: "${HELM:?is the path of helm}"

chart=charts/btrfs-csi
snapshotter=github.com/kubernetes-csi/external-snapshotter/client/v8
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Do not use or change the user's configuration of helm.
export HELM_CACHE_HOME=$work/helm HELM_CONFIG_HOME=$work/helm HELM_DATA_HOME=$work/helm

render() { # namespace, more arguments of helm template
	local namespace=$1
	shift
	"$HELM" template btrfs-csi $chart --namespace "$namespace" --skip-tests \
		--api-versions snapshot.storage.k8s.io/v1 "$@"
}

# Splits the output of helm into one file for each template. It drops the labels and annotations of
# helm, by which the objects could later be taken for part of a release.
split() { # directory
	mkdir -p "$1"
	awk -v dir="$1" '
		/^---$/ { blank = ""; next }
		/^# Source: / {
			file = dir substr($3, match($3, /\/[^\/]*$/))
			if (seen[file]++) print "---" > file
			next
		}
		/^ +(helm\.sh\/.*|app\.kubernetes\.io\/managed-by: Helm)$/ { next }
		/^$/ { blank = blank "\n"; next }
		{ printf "%s%s\n", blank, $0 > file; blank = "" }
	'
}

kustomization() { # directory
	{
		printf 'apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n'
		(cd "$1" && printf '  - %s\n' *.yaml)
	} > "$1/kustomization"
	mv "$1/kustomization" "$1/kustomization.yaml"
}

# The snapshot CRDs of the version that the driver is built with.
snapshot_crds() { # directory
	local module name
	go mod download "$snapshotter"
	module=$(go list -m -f '{{.Dir}}' "$snapshotter")
	mkdir -p "$1"
	for name in volumesnapshotclasses volumesnapshotcontents volumesnapshots; do
		cp "$module/config/crd/snapshot.storage.k8s.io_$name.yaml" "$1/$name.yaml"
	done
	for name in volumegroupsnapshotclasses volumegroupsnapshotcontents volumegroupsnapshots; do
		cp "$module/config/crd/groupsnapshot.storage.k8s.io_$name.yaml" "$1/$name.yaml"
	done
	chmod 644 "$1"/*.yaml # those of the module cache are read-only
}

manifests() { # directory
	render btrfs-csi | split "$1"
	cat > "$1/namespace.yaml" <<-'EOF'
		apiVersion: v1
		kind: Namespace
		metadata:
		  name: btrfs-csi
		  labels:
		    # Mounting needs a privileged container.
		    pod-security.kubernetes.io/enforce: privileged
		    pod-security.kubernetes.io/audit: privileged
		    pod-security.kubernetes.io/warn: privileged
	EOF
	kustomization "$1"
	render kube-system --set snapshotController.enabled=true --show-only templates/snapshot-controller.yaml | split "$1/snapshot-controller"
	snapshot_crds "$1/snapshot-controller"
	kustomization "$1/snapshot-controller"
}

readme() { # file
	awk -f hack/values-table.awk $chart/values.yaml > "$work/table"
	awk -v table="$work/table" '
		/^<!-- end of values -->$/ { hidden = 0 }
		!hidden { print }
		/^<!-- values, made by make update -->$/ { while ((getline line < table) > 0) print line; hidden = 1 }
	' $chart/README.md > "$1"
}

generate() { # directory
	mkdir -p "$1/$chart" "$1/deploy"
	snapshot_crds "$1/$chart/charts/snapshot-crds/crds"
	manifests "$1/deploy/kubernetes"
	readme "$1/$chart/README.md"
}

generated=($chart/charts/snapshot-crds/crds deploy/kubernetes $chart/README.md)
generate "$work"

case $1 in
update)
	for path in "${generated[@]}"; do
		rm -rf "$path"
		cp -r "$work/$path" "$path"
	done
	;;
verify)
	for path in "${generated[@]}"; do
		diff -ruN "$path" "$work/$path" || { echo "$path is not up to date: run make update" >&2; exit 1; }
	done
	hack/chart-test.sh
	;;
*) echo "$0: $1 is unknown; update and verify are known" >&2; exit 2 ;;
esac
