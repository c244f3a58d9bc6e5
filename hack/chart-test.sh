#!/usr/bin/env bash
# The chart lints, renders with each file of values in its directory ci/, and refuses values
# that make no sense, naming the path of the value.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${HELM:?is the path of helm}"

chart=charts/btrfs-csi
failed=0

fail() {
	echo "chart: $*" >&2
	failed=1
}

render() {
	"$HELM" template release $chart --namespace ns --kube-version 1.37.2 "$@" 2>&1
}

# refuses <what the message has to name> <arguments>
refuses() {
	local path=$1 output
	shift
	if output=$(render "$@"); then
		fail "$* was accepted"
	elif [[ $output != *"$path"* ]]; then
		fail "$*: $path is not named: $output"
	fi
}

# has <extended regular expression> <arguments>; hasnt is the contrary
has() {
	local expression=$1 output
	shift
	if ! output=$(render "$@"); then
		fail "$*: $output"
	elif ! grep -qE -- "$expression" <<< "$output"; then
		fail "$*: nothing matches $expression"
	fi
}

hasnt() {
	local expression=$1 output
	shift
	if ! output=$(render "$@"); then
		fail "$*: $output"
	elif grep -E -- "$expression" <<< "$output" >&2; then
		fail "$*: what matches $expression should not be there"
	fi
}

"$HELM" lint --strict --quiet $chart || fail "lint"
with_snapshots=(--api-versions snapshot.storage.k8s.io/v1)
for values in $chart/ci/*.yaml; do
	"$HELM" lint --strict --quiet $chart --values "$values" || fail "lint with $values"
	output=$(render "${with_snapshots[@]}" --values "$values") || fail "$values: $output"
done

# What makes no sense.
refuses "additional properties 'kubeletdir' not allowed" --set kubeletdir=/var/lib/kubelet
refuses /kubeletDir --set kubeletDir=var/lib/kubelet
refuses /kubeletDir --set kubeletDir=/var/lib/kubelet/
refuses /kubeletDir --set kubeletDir=/var/lib/../kubelet
refuses /kubeletDir --set kubeletDir=/a-directory-so-deep/that-the-socket-below-it/has-too-long-a-path
refuses /stateDir --set stateDir=
refuses stateDir --set stateDir=/var/lib/kubelet/btrfs-csi
refuses stateDir --set stateDir=/var/lib
refuses /loopPoolSize --set loopPoolSize=20GB
refuses /loopPoolSize --set loopPoolSize=20
refuses /loopPoolSize --set-string loopPoolSize=-1Gi
refuses 'loopPoolSize "255Mi": at least 256Mi' --set loopPoolSize=255Mi
refuses 'loopPoolSize "268M": at least 256Mi' --set loopPoolSize=268M
refuses 'loopPoolSize "262143.9Ki": at least 256Mi' --set loopPoolSize=262143.9Ki
refuses /quota --set quota=exact
refuses /orphans/policy --set orphans.policy=remove
refuses /orphans/grace --set orphans.grace=1d
refuses /orphans/grace --set orphans.policy=delete,orphans.grace=0h0m
refuses /logLevel --set-string logLevel=2
refuses /httpPort --set httpPort=80
refuses /kubeAPI/qps --set kubeAPI.qps=0
refuses /image/pullPolicy --set image.pullPolicy=Sometimes
refuses /image --set image.name=btrfs-csi
refuses /image/tag --set image.tag='v1 beta'
refuses /imagePullSecrets/0 --set 'imagePullSecrets[0]=secret'
refuses /driver/extraArgs/0 --set 'driver.extraArgs[0]=serve'
refuses /driver/resources/limits/memory --set driver.resources.limits.memory=1GB
refuses /driver/resources/limits --set driver.resources.limits.memroy=1Gi
refuses /provisioner/workerThreads --set provisioner.workerThreads=0
refuses /sidecars/timeout --set sidecars.timeout=60
refuses /sidecars/timeout --set sidecars.timeout=0s
refuses /sidecars/retryIntervalStart --set sidecars.retryIntervalStart=0ms
refuses /provisioner/capacityPollInterval --set provisioner.capacityPollInterval=0s
refuses /podMonitor/interval --set podMonitor.interval=0.0s
refuses networkPolicy.from --set networkPolicy.enabled=true,podMonitor.enabled=true
refuses /networkPolicy/from/0 --set 'networkPolicy.from[0].podselector.matchLabels.app=prometheus'
refuses /networkPolicy/from/0 --set 'networkPolicy.from[0]=monitoring'
refuses /snapshotter/enabled --set snapshotter.enabled=auto
refuses /tolerations/0/effect --set 'tolerations[0].effect=NoScheduling'
refuses /updateStrategy --set updateStrategy.rollingUpdate.maxSurge=1
refuses /updateStrategy/rollingUpdate/maxUnavailable --set updateStrategy.rollingUpdate.maxUnavailable=0
refuses /snapshotController/replicas --set snapshotController.replicas=0
refuses /storageClasses/0/name --set 'storageClasses[0].name=Fast'
refuses "/storageClasses/0': missing property 'name'" --set 'storageClasses[0].default=true'
refuses /storageClasses/0/volumeBindingMode --set 'storageClasses[0].name=a,storageClasses[0].volumeBindingMode=Later'
refuses /storageClasses/0/mountOptions/0 --set 'storageClasses[0].name=a,storageClasses[0].mountOptions[0]=compress=zstd'
refuses /storageClasses/0/parameters --set 'storageClasses[0].name=a,storageClasses[0].parameters.compresion=zstd'
refuses /storageClasses/0/parameters --set 'storageClasses[0].name=a,storageClasses[0].parameters.csi\.storage\.k8s\.io/node-stage-secret-name=x'
refuses /storageClasses/0/parameters/compression --set 'storageClasses[0].name=a,storageClasses[0].parameters.compression=zstd:16'
refuses /storageClasses/0/parameters/pool --set 'storageClasses[0].name=a,storageClasses[0].parameters.pool=../x'
refuses /storageClasses/0/parameters/nodatacow --set 'storageClasses[0].name=a,storageClasses[0].parameters.nodatacow=maybe'
refuses 'storageClasses[0].parameters' --set 'storageClasses[0].name=a,storageClasses[0].parameters.nodatacow=true,storageClasses[0].parameters.compression=lzo'
refuses 'storageClasses[1].default' --set 'storageClasses[0].name=a,storageClasses[0].default=true,storageClasses[1].name=b,storageClasses[1].default=true'
refuses 'storageClasses[1].name' --set 'storageClasses[0].name=a,storageClasses[1].name=a'
refuses 'storageClasses[0].mountOptions: ro and rw' --set 'storageClasses[0].name=a,storageClasses[0].mountOptions={ro,noatime,rw}'
refuses 'storageClasses[0].mountOptions: noatime and relatime' --set 'storageClasses[0].name=a,storageClasses[0].mountOptions={relatime,noatime}'
refuses 'volumeSnapshotClasses[1].default' --set 'volumeSnapshotClasses[0].name=a,volumeSnapshotClasses[0].default=true,volumeSnapshotClasses[1].name=b,volumeSnapshotClasses[1].default=true'
refuses 'volumeSnapshotClasses[1].name' --set 'volumeSnapshotClasses[0].name=a,volumeSnapshotClasses[1].name=a'
refuses /volumeSnapshotClasses/0/deletionPolicy --set 'volumeSnapshotClasses[0].name=a,volumeSnapshotClasses[0].deletionPolicy=Keep'
refuses snapshotController.enabled --set snapshotController.enabled=true --is-upgrade
refuses kubeVersion --kube-version 1.30.0
# Without a value a key is not there, and what would be made of that is nonsense.
for key in $(sed -n 's/^\([a-zA-Z]*\):.*/\1/p' $chart/values.yaml); do
	refuses "missing property '$key'" --set "$key=null"
done

# What has to hold whatever the values are.
for values in "$chart/values.yaml" $chart/ci/*.yaml; do
	hasnt '<no value>|%!|<nil>' "${with_snapshots[@]}" --values "$values"
	[ "$(render --values "$values" | grep -c 'privileged: true')" = 1 ] || fail "$values: one container is privileged, no more"
done
hasnt '/var/lib/kubelet' --set kubeletDir=/data/kubelet
has '^ +- --endpoint=unix:///data/kubelet/plugins/btrfs-csi.github.io/csi.sock$' --set kubeletDir=/data/kubelet
has '^ +- --loop-pool=256Mi$' --set loopPoolSize=256Mi
has '^ +- --loop-pool=1P$' --set loopPoolSize=1P
has '^ +- --orphan-grace=0s$' --set orphans.grace=0s
hasnt '/var/lib/btrfs-csi' --set stateDir=/data/btrfs-csi
hasnt 'csi-snapshotter|^kind: VolumeSnapshotClass$' "${with_snapshots[@]}" --set snapshotter.enabled=false
has '^kind: VolumeSnapshotClass$' "${with_snapshots[@]}"
hasnt '^kind: VolumeSnapshotClass$'
hasnt 'kind: (PodMonitor|PrometheusRule|Deployment|NetworkPolicy)'
# A rule with an empty `from` would let everybody in.
has '^  ingress: \[\]$' --set networkPolicy.enabled=true
hasnt 'from:' --set networkPolicy.enabled=true,snapshotController.enabled=true
has 'port: 19808, endPort: 19811' --values $chart/ci/everything.yaml

# Each image can be had by its digest.
digest=sha256:$(printf '%064d' 0)
images=(image provisioner.image snapshotter.image resizer.image snapshotController.image test.image)
pinned=$(render --set snapshotController.enabled=true $(printf -- '--set=%s.tag=v1@'"$digest"' ' "${images[@]}")) || fail "$pinned"
[ "$(grep -cE '^ +image: ' <<< "$pinned")" = ${#images[@]} ] || fail "an image is missing in images"
[ "$(grep -cE "^ +image: \".*:v1@$digest\"$" <<< "$pinned")" = ${#images[@]} ] || fail "an image has lost its digest: $(grep -E '^ +image: ' <<< "$pinned")"
hasnt 'kind: CustomResourceDefinition' --include-crds --set crds.install=false
has 'name: volumesnapshots.snapshot.storage.k8s.io' --include-crds --set snapshotController.enabled=true
hasnt 'name: volumesnapshots.snapshot.storage.k8s.io' --include-crds

# A policy without a binding holds nobody, and so does one for another user.
policies=$(render --show-only templates/admission.yaml)
named() { grep -A2 "^kind: $1\$" <<< "$policies" | grep '^  name: '; }
[ "$(named ValidatingAdmissionPolicy)" = "$(named ValidatingAdmissionPolicyBinding)" ] || fail "each policy needs a binding of its name"
[ "$(named ValidatingAdmissionPolicy | wc -l)" = "$(grep -c "username == 'system:serviceaccount:ns:release-btrfs-csi'" <<< "$policies")" ] ||
	fail "each policy is for the driver's service account"
hasnt ValidatingAdmissionPolicy --set admissionPolicies.enabled=false

# The CRDs are of the version that makes and serves the snapshots.
version=$(go list -m -f '{{.Version}}' github.com/kubernetes-csi/external-snapshotter/client/v8)
has "snapshot-controller:$version" --set snapshotController.enabled=true
has "csi-snapshotter:$version"
grep -qx "version: ${version#v}" $chart/charts/snapshot-crds/Chart.yaml || fail "$chart/charts/snapshot-crds/Chart.yaml: version ${version#v} is wanted"

exit $failed
