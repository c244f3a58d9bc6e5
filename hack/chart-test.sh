#!/usr/bin/env bash
# Checks that the chart lints, renders with each values file in its directory ci/, and refuses
# wrong values with an error that names their path.
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

# Wrong values.
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
refuses 'volumeGroupSnapshotClasses[1].name' --set 'volumeGroupSnapshotClasses[0].name=a,volumeGroupSnapshotClasses[1].name=a'
refuses /volumeGroupSnapshotClasses/0/parameters --set 'volumeGroupSnapshotClasses[0].name=a,volumeGroupSnapshotClasses[0].parameters.pool=fast'
refuses 'storageClasses[1].name: there is another class "btrfs"' --set 'storageClasses[0].default=true,storageClasses[1].reclaimPolicy=Retain'
refuses /storageClasses/0/allowedTopologies/0/matchLabelExpressions/0/key --set 'storageClasses[0].allowedTopologies[0].matchLabelExpressions[0].key=kubernetes.io/hostname,storageClasses[0].allowedTopologies[0].matchLabelExpressions[0].values={a}'
refuses snapshotController.enabled --set snapshotController.enabled=true --is-upgrade
refuses /snapshotController/podDisruptionBudget/maxUnavailable --set snapshotController.podDisruptionBudget.maxUnavailable=0
refuses /snapshotController/topologySpreadConstraints/0 --set 'snapshotController.topologySpreadConstraints[0].maxSkew=1'
refuses /global/imageRegistry --set global.imageRegistry=https://mirror.example
refuses /image/digest --set image.digest=latest
refuses 'has a digest already' --set "image.tag=v1@sha256:$(printf '%064d' 0),image.digest=sha256:$(printf '%064d' 1)"
refuses "invalid propertyName 'app.kubernetes.io/name'" --set 'commonLabels.app\.kubernetes\.io/name=other'
refuses "invalid propertyName 'app.kubernetes.io/component'" --set 'podLabels.app\.kubernetes\.io/component=other'
refuses /commonLabels/team --set 'commonLabels.team=two words'
refuses serviceAccount.name --set serviceAccount.create=false
refuses createNamespace --set createNamespace=true
refuses createNamespace --set createNamespace=true,namespaceOverride=ns
refuses /driver/extraEnv/0/value --set 'driver.extraEnv[0].name=GOGC,driver.extraEnv[0].value=50'
refuses /driver/extraEnv/0/name --set 'driver.extraEnv[0].name=NODE_NAME,driver.extraEnv[0].value=other'
refuses /extraVolumes/0/name --set 'extraVolumes[0].name=state'
refuses /driver/extraVolumeMounts/0 --set 'driver.extraVolumeMounts[0].name=certificates'
refuses networkPolicy.enabled --set networkPolicy.enabled=true,hostNetwork=true
refuses /nodeGroups/0 --set 'nodeGroups[0].quota=none'
refuses /extraInitContainers/0/command/0 --set 'extraInitContainers[0].name=a,extraInitContainers[0].image=b,extraInitContainers[0].command[0]=true'
refuses "/nodeGroups/0': additional properties 'httpPort' not allowed" --set 'nodeGroups[0].name=a,nodeGroups[0].httpPort=9999'
refuses /nodeGroups/0/quota --set 'nodeGroups[0].name=a,nodeGroups[0].quota=exact'
refuses 'nodeGroups[1].name: there is another group "a"' --set 'nodeGroups[0].name=a,nodeGroups[1].name=a'
refuses 'nodeGroups[1].nodes: nodes with btrfs-csi.github.io/node-group=a' --set 'nodeGroups[0].name=a,nodeGroups[1].name=b,nodeGroups[1].nodes={c,a}'
refuses 'nodeGroups, a: loopPoolSize "1Mi": at least 256Mi' --set 'nodeGroups[0].name=a,nodeGroups[0].loopPoolSize=1Mi'
refuses 'nodeGroups, a: stateDir' --set 'nodeGroups[0].name=a,nodeGroups[0].stateDir=/var/lib'
refuses 'prometheusRule.alerts: there is no alert "BtrfsFull"; there are BtrfsDriverDown,' --set prometheusRule.alerts.BtrfsFull.enabled=false
refuses /prometheusRule/alerts/BtrfsPoolFull --set prometheusRule.alerts.BtrfsPoolFull.threshold=5
refuses /prometheusRule/alerts/BtrfsPoolFull/for --set prometheusRule.alerts.BtrfsPoolFull.for=soon
refuses /prometheusRule/additionalRules/0 --set 'prometheusRule.additionalRules[0].expr=1'
refuses /extraObjects/0 --set 'extraObjects[0].kind=ConfigMap'
refuses kubeVersion --kube-version 1.30.0
# A null removes a key, and the chart would render nonsense.
for key in $(sed -n 's/^\([a-zA-Z]*\):.*/\1/p' $chart/values.yaml); do
	refuses "missing property '$key'" --set "$key=null"
done

# These hold for all values.
hack/owned.sh hack/progress.sh "building bin/chart-objects" go build -C test/chart -o "$PWD/bin/chart-objects" ./objects
for values in "$chart/values.yaml" $chart/ci/*.yaml; do
	hasnt '<no value>|%!|<nil>' "${with_snapshots[@]}" --values "$values"
	rendered=$(render "${with_snapshots[@]}" --values "$values") || fail "$values: $rendered"
	output=$(bin/chart-objects <<< "$rendered" 2>&1) || fail "$values: Kubernetes would not take it: $output"
	[ "$(grep -c 'privileged: true' <<< "$rendered")" = "$(grep -c '^kind: DaemonSet$' <<< "$rendered")" ] || fail "$values: one container of each node is privileged, no more"
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
# A rule with an empty `from` would admit everybody.
has '^  ingress: \[\]$' --set networkPolicy.enabled=true
hasnt 'from:' --set networkPolicy.enabled=true,snapshotController.enabled=true
has 'port: 19808, endPort: 19811' --values $chart/ci/everything.yaml

# Helm merges a value into one entry of a list. All else stays as it was.
classes=$(render "${with_snapshots[@]}" --show-only templates/classes.yaml)
default=$(render "${with_snapshots[@]}" --show-only templates/classes.yaml --set 'storageClasses[0].default=true')
[ "$(sed 's|storageclass.kubernetes.io/is-default-class: "false"|storageclass.kubernetes.io/is-default-class: "true"|' <<< "$classes")" = "$default" ] ||
	fail "storageClasses[0].default=true changes more than that"
retain=$(render "${with_snapshots[@]}" --show-only templates/classes.yaml --set 'volumeSnapshotClasses[0].deletionPolicy=Retain')
[ "$(sed 's|deletionPolicy: Delete|deletionPolicy: Retain|' <<< "$classes")" = "$retain" ] || fail "volumeSnapshotClasses[0].deletionPolicy=Retain changes more than that"
has '^kind: VolumeSnapshotClass$' --set snapshotController.enabled=true
has '^kind: VolumeGroupSnapshotClass$' --set 'volumeGroupSnapshotClasses[0].name=a' --api-versions groupsnapshot.storage.k8s.io/v1
hasnt '^kind: VolumeGroupSnapshotClass$' --set 'volumeGroupSnapshotClasses[0].name=a' "${with_snapshots[@]}"
hasnt 'priorityClassName: (""|system-node-critical)?$' --set priorityClassName=
hasnt 'kind: (Role|ClusterRole)$' --set rbac.create=false
hasnt 'kind: ServiceAccount$' --set serviceAccount.create=false,serviceAccount.name=mine
has 'serviceAccountName: mine$' --set serviceAccount.create=false,serviceAccount.name=mine
has "username == 'system:serviceaccount:ns:mine'" --set serviceAccount.create=false,serviceAccount.name=mine
hasnt 'namespace: ns$|:ns:' --set namespaceOverride=other,snapshotController.enabled=true,networkPolicy.enabled=true,podMonitor.enabled=true,prometheusRule.enabled=true --set 'networkPolicy.from[0].ipBlock.cidr=10.0.0.0/8'
has 'dnsPolicy: ClusterFirstWithHostNet$' --set hostNetwork=true

# All objects, and the pods, have the common labels and annotations.
everything=$(render "${with_snapshots[@]}" --values $chart/ci/everything.yaml --set-json 'extraObjects=[]') || fail "$everything"
objects=$(grep -c '^kind: ' <<< "$everything")
templates=$(grep -c '^  template:$' <<< "$everything")
for mark in 'team: (storage|disks)' 'example.org/contact: storage@example.org'; do
	[ "$(grep -cE "^ +$mark\$" <<< "$everything")" = $((objects + templates)) ] || fail "$((objects + templates)) objects and pods want $mark: $(grep -cE "^ +$mark\$" <<< "$everything") have it"
done

# No node and no pod belongs to two DaemonSets.
groups=(--set 'nodeGroups[0].name=a,nodeGroups[0].quota=none,nodeGroups[0].loopPoolSize=,nodeGroups[1].name=b,nodeGroups[1].nodes={c,d}' --set loopPoolSize=1Gi,driver.resources.limits.memory=1Gi)
daemonset() { render "${groups[@]}" --show-only templates/daemonset.yaml | awk -v wanted="$1" 'BEGIN { RS = "---\n" } $0 ~ "\n  name: " wanted "\n"'; }
affinity() { daemonset "$1" | sed -n '/^      affinity:$/,/^      [a-z]*tolerations:$/p' | tr -d '\n '; }
[[ $(affinity release-btrfs-csi) == *'key:btrfs-csi.github.io/node-groupoperator:NotInvalues:-a-c-d'* ]] || fail "the nodes of groups are left out: $(affinity release-btrfs-csi)"
[[ $(affinity release-btrfs-csi-a) == *'operator:Invalues:-atolerations:' ]] || fail "group a is that of its name: $(affinity release-btrfs-csi-a)"
[[ $(affinity release-btrfs-csi-b) == *'operator:Invalues:-c-dtolerations:' ]] || fail "group b names its nodes: $(affinity release-btrfs-csi-b)"
[ "$(daemonset release-btrfs-csi-a | grep -cE -- 'component: node-a$|--quota=none$|memory: 1Gi$')" = 5 ] || fail "group a has its quota, its component three times, and the memory of all: $(daemonset release-btrfs-csi-a)"
[[ $(daemonset release-btrfs-csi-a) != *--loop-pool* ]] || fail "group a has no loop pool"
[[ $(daemonset release-btrfs-csi-b) == *--quota=auto*--loop-pool=1Gi* ]] || fail "group b has the values of all"
has "o.name in \['release-btrfs-csi', 'release-btrfs-csi-a', 'release-btrfs-csi-b'\]" "${groups[@]}"

# All images come from the registry that is named.
mirrored=$(render --set global.imageRegistry=mirror.example:5000/all,snapshotController.enabled=true | sed -n 's/^ *image: "\(.*\):[^:]*"$/\1/p' | sort)
[ "$mirrored" = "$(printf 'mirror.example:5000/all/%s\n' btrfs-csi/btrfs-csi library/busybox sig-storage/csi-{provisioner,resizer,snapshotter} sig-storage/snapshot-controller | sort)" ] ||
	fail "global.imageRegistry: $mirrored"
has 'image: "btrfs-csi:v0.1.0"' --set image.repository=btrfs-csi
has 'image: "mirror.example/btrfs-csi:v0.1.0"' --set image.repository=localhost/btrfs-csi,global.imageRegistry=mirror.example
has 'name: parents$' --set 'global.imagePullSecrets={parents}'

# Alerts can be changed one by one.
alerts=(--show-only templates/monitoring.yaml --set prometheusRule.enabled=true)
hasnt BtrfsOrphans "${alerts[@]}" --set prometheusRule.alerts.BtrfsOrphans.enabled=false
has 'for: 3h$' "${alerts[@]}" --set prometheusRule.alerts.BtrfsPoolFull.for=3h
has 'severity: page$' "${alerts[@]}" --set prometheusRule.alerts.BtrfsPoolFull.labels.severity=page
has 'runbook_url: https://runbooks.example/BtrfsPoolFull.md$' "${alerts[@]}" --set prometheusRule.runbookURL=https://runbooks.example

# Each image can be pinned by a digest.
digest=sha256:$(printf '%064d' 0)
images=(image provisioner.image snapshotter.image resizer.image snapshotController.image test.image)
pinned=$(render --set snapshotController.enabled=true $(printf -- '--set=%s.tag=v1@'"$digest"' ' "${images[@]}")) || fail "$pinned"
[ "$(grep -cE '^ +image: ' <<< "$pinned")" = ${#images[@]} ] || fail "an image is missing in images"
[ "$(grep -cE "^ +image: \".*:v1@$digest\"$" <<< "$pinned")" = ${#images[@]} ] || fail "an image has lost its digest: $(grep -E '^ +image: ' <<< "$pinned")"
pinned=$(render --set snapshotController.enabled=true $(printf -- '--set=%s.digest='"$digest"' ' "${images[@]}")) || fail "$pinned"
[ "$(grep -cE "^ +image: \".*:[^@]+@$digest\"$" <<< "$pinned")" = ${#images[@]} ] || fail "an image has no digest: $(grep -E '^ +image: ' <<< "$pinned")"
hasnt 'kind: CustomResourceDefinition' --include-crds --set crds.install=false
has 'name: volumesnapshots.snapshot.storage.k8s.io' --include-crds --set snapshotController.enabled=true
hasnt 'name: volumesnapshots.snapshot.storage.k8s.io' --include-crds

# The dashboard is the file, whatever is in it that looks like a template.
dashboard=$(render --set dashboard.enabled=true --show-only templates/dashboard.yaml | sed -n '/^  btrfs-csi.json: |$/,$s/^    //p')
[ "$dashboard" = "$(cat $chart/files/dashboard.json)" ] || fail "the dashboard is not that of its file"

# Artifact Hub shows the annotations of the chart and the README of the package.
annotation() { sed -n "\\|^  artifacthub.io/$1: |,\\|^  artifacthub.io/|p" $chart/Chart.yaml; }
listed=$(annotation images | sed -n 's/^ *image: //p' | sort)
rendered=$(render --set snapshotController.enabled=true | sed -n 's/^ *image: "\(.*\)"$/\1/p' | sort)
[ "$listed" = "$rendered" ] || fail "artifacthub.io/images of Chart.yaml is not what is rendered: $(diff <(echo "$listed") <(echo "$rendered"))"
listed=$(annotation crds | sed -n 's/^ *name: //p' | sort)
[ "$listed" = "$(sed -n 's/^  name: //p' $chart/files/crds/*.yaml | sort)" ] || fail "artifacthub.io/crds of Chart.yaml is not files/crds: $listed"
if grep -nE '\]\((\.|[a-z]+[^:)]*\))' $chart/README.md >&2; then fail "README.md: a link of a package has to be absolute"; fi

# The package contains the directory without the files for tests.
package=$(mktemp -d)
trap 'rm -rf "$package"' EXIT
"$HELM" package $chart --destination "$package" > /dev/null || fail "package"
tar -tzf "$package"/btrfs-csi-*.tgz | grep -q '^btrfs-csi/ci/' && fail "ci/ is in the package"
[ "$("$HELM" template release "$package"/btrfs-csi-*.tgz --namespace ns --kube-version 1.37.2)" = "$("$HELM" template release $chart --namespace ns --kube-version 1.37.2)" ] ||
	fail "the package renders something else than the chart"

# A policy without a binding, or for another user, has no effect.
policies=$(render --show-only templates/admission.yaml)
named() { grep -A2 "^kind: $1\$" <<< "$policies" | grep '^  name: '; }
[ "$(named ValidatingAdmissionPolicy)" = "$(named ValidatingAdmissionPolicyBinding)" ] || fail "each policy needs a binding of its name"
[ "$(named ValidatingAdmissionPolicy | wc -l)" = "$(grep -c "username == 'system:serviceaccount:ns:release-btrfs-csi'" <<< "$policies")" ] ||
	fail "each policy is for the driver's service account"
hasnt ValidatingAdmissionPolicy --set admissionPolicies.enabled=false

# The CRDs have the version of the snapshot-controller and the csi-snapshotter.
version=$(go list -m -f '{{.Version}}' github.com/kubernetes-csi/external-snapshotter/client/v8)
has "snapshot-controller:$version" --set snapshotController.enabled=true
has "csi-snapshotter:$version"
grep -qx "version: ${version#v}" $chart/charts/snapshot-crds/Chart.yaml || fail "$chart/charts/snapshot-crds/Chart.yaml: version ${version#v} is wanted"

exit $failed
