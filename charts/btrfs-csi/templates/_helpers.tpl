{{/* The name of the CSI driver, its API group and its directory at the kubelet. */}}
{{- define "btrfs-csi.driver" -}}btrfs-csi.github.io{{- end }}

{{/* The lease by which the resizer is elected. */}}
{{- define "btrfs-csi.lease" -}}external-resizer-{{ include "btrfs-csi.driver" . | replace "." "-" }}{{- end }}

{{/* The user of the sidecars, who alone may open the driver's socket. */}}
{{- define "btrfs-csi.uid" -}}65532{{- end }}

{{/* Names leave room for what is added, the longest being -snapshot-controller. */}}
{{- define "btrfs-csi.fullname" -}}
{{- $name := .Values.fullnameOverride }}
{{- if not $name }}
  {{- $name = contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) }}
{{- end }}
{{- $name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* The namespace of all objects. */}}
{{- define "btrfs-csi.namespace" -}}{{ .Values.namespaceOverride | default .Release.Namespace }}{{- end }}

{{/* The service account of the driver's pods. */}}
{{- define "btrfs-csi.serviceAccount" -}}{{ .Values.serviceAccount.name | default (include "btrfs-csi.fullname" .) }}{{- end }}

{{/* What a component's pods are chosen by; it cannot change later. Called with (list . "component"). */}}
{{- define "btrfs-csi.selector" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ $.Chart.Name }}
app.kubernetes.io/instance: {{ $.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* What the pods of all groups of nodes are chosen by. */}}
{{- define "btrfs-csi.nodeSelector" -}}
{{- if .Values.nodeGroups }}
matchLabels:
  app.kubernetes.io/name: {{ .Chart.Name }}
  app.kubernetes.io/instance: {{ .Release.Name }}
matchExpressions:
  - key: app.kubernetes.io/component
    operator: In
    values:
      - node
      {{- range .Values.nodeGroups }}
      - node-{{ .name }}
      {{- end }}
{{- else }}
matchLabels: {{- include "btrfs-csi.selector" (list . "node") | nindent 2 }}
{{- end }}
{{- end }}

{{- define "btrfs-csi.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/*
The metadata of an object. Called with a dict: `of` is the root; `name`, `namespace`, `component`,
`labels` and `annotations` are those of the object, and only the first is needed.
*/}}
{{- define "btrfs-csi.metadata" -}}
name: {{ .name }}
{{- with .namespace }}
namespace: {{ . }}
{{- end }}
labels:
  {{- include "btrfs-csi.labels" .of | nindent 2 }}
  {{- with .component }}
  app.kubernetes.io/component: {{ . }}
  {{- end }}
  {{- with mergeOverwrite dict .of.Values.commonLabels (.labels | default dict) }}{{ toYaml . | nindent 2 }}{{ end }}
{{- with mergeOverwrite dict .of.Values.commonAnnotations (.annotations | default dict) }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The labels of a component's pods. Called with (list . "component" labels). */}}
{{- define "btrfs-csi.podLabels" -}}
{{- $ := index . 0 -}}
{{- with mergeOverwrite dict $.Values.commonLabels (index . 2) }}{{ toYaml . }}
{{ end }}
{{- include "btrfs-csi.selector" (list $ (index . 1)) }}
{{- end }}

{{/*
An image of values. Called with (list . .Values.<...>.image). What is before the first slash of a
repository is its registry if it could be the name of a host.
*/}}
{{- define "btrfs-csi.image" -}}
{{- $ := index . 0 -}}
{{- $image := index . 1 -}}
{{- $repository := $image.repository }}
{{- with $.Values.global.imageRegistry }}
  {{- $repository = printf "%s/%s" (trimSuffix "/" .) (regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $repository "") }}
{{- end }}
{{- $tag := $image.tag | default $.Chart.AppVersion }}
{{- with $image.digest }}
  {{- if contains "@" $tag }}{{ fail (printf "image %s: tag %q has a digest already; leave it out there, or leave out digest" $repository $tag) }}{{ end }}
  {{- $tag = printf "%s@%s" $tag . }}
{{- end -}}
image: {{ printf "%s:%s" $repository $tag | quote }}
imagePullPolicy: {{ $.Values.image.pullPolicy }}
{{- end }}

{{/* The secrets of a pod to pull images with. Parents of charts name theirs in either form. */}}
{{- define "btrfs-csi.pullSecrets" -}}
{{- $secrets := list }}
{{- range concat (.Values.global.imagePullSecrets | default list) .Values.imagePullSecrets }}
  {{- $secrets = append $secrets (kindIs "string" . | ternary (dict "name" .) .) }}
{{- end }}
{{- with uniq $secrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* All that is not the driver runs so. Called with the SELinux options. */}}
{{- define "btrfs-csi.unprivileged" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: {{ include "btrfs-csi.uid" . }}
runAsGroup: {{ include "btrfs-csi.uid" . }}
seccompProfile: {type: RuntimeDefault}
{{- with . }}
seLinuxOptions: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Arguments that the three sidecars share. */}}
{{- define "btrfs-csi.sidecarArgs" -}}
- --csi-address=/csi/csi.sock
- --timeout={{ .Values.sidecars.timeout }}
- --retry-interval-start={{ .Values.sidecars.retryIntervalStart }}
- --retry-interval-max={{ .Values.sidecars.retryIntervalMax }}
- --kube-api-qps={{ .Values.kubeAPI.qps }}
- --kube-api-burst={{ .Values.kubeAPI.burst }}
- --v={{ .Values.logLevel }}
{{- end }}

{{/* The socket is all of the host that a sidecar sees. */}}
{{- define "btrfs-csi.sidecarRest" -}}
securityContext: {{- include "btrfs-csi.unprivileged" .Values.sidecars.seLinuxOptions | nindent 2 }}
terminationMessagePolicy: FallbackToLogsOnError
volumeMounts:
  - {name: socket, mountPath: /csi, readOnly: true}
{{- end }}

{{- define "btrfs-csi.env" -}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
{{- end }}

{{/* Text for a class's parameters, which are strings in Kubernetes. */}}
{{- define "btrfs-csi.parameters" -}}
{{- range $key, $value := . }}
{{ $key }}: {{ $value | toString | quote }}
{{- end }}
{{- end }}

{{/* The bytes of a size like 20Gi. */}}
{{- define "btrfs-csi.bytes" -}}
{{- $units := dict "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 }}
{{- mulf (regexFind "^[0-9.]+" .) (get $units (regexFind "[a-zA-Z]+$" .)) }}
{{- end }}

{{/* "true" where VolumeSnapshotClasses can be made: the release brings their CRDs, or the cluster has them. */}}
{{- define "btrfs-csi.snapshotClasses" -}}
{{- and .Values.snapshotter.enabled (or .Values.snapshotController.enabled (.Capabilities.APIVersions.Has "snapshot.storage.k8s.io/v1")) }}
{{- end }}

{{/* The values that the label of a group's nodes may have. Called with the group. */}}
{{- define "btrfs-csi.groupNodes" -}}{{ .nodes | default (list .name) | join "," }}{{- end }}

{{/* No node may be of two groups. */}}
{{- define "btrfs-csi.checkGroups" -}}
{{- $names := list }}
{{- $nodes := list }}
{{- range $i, $group := .Values.nodeGroups }}
  {{- if has $group.name $names }}
    {{- fail (printf "nodeGroups[%d].name: there is another group %q" $i $group.name) }}
  {{- end }}
  {{- $names = append $names $group.name }}
  {{- range include "btrfs-csi.groupNodes" $group | splitList "," }}
    {{- if has . $nodes }}
      {{- fail (printf "nodeGroups[%d].nodes: nodes with %s=%s are of another group already, and a node has one driver" $i $.Values.nodeGroupLabel .) }}
    {{- end }}
    {{- $nodes = append $nodes . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The affinity of the pods of one group of nodes, or of those that run on all other nodes. */}}
{{- define "btrfs-csi.groupAffinity" -}}
{{- $affinity := deepCopy .Values.affinity }}
{{- if .Values.nodeGroups }}
  {{- $nodes := list }}
  {{- range .Values.group | empty | ternary .Values.nodeGroups (list .Values.group) }}
    {{- $nodes = concat $nodes (include "btrfs-csi.groupNodes" . | splitList ",") }}
  {{- end }}
  {{- $expression := dict "key" .Values.nodeGroupLabel "operator" (.Values.group | empty | ternary "NotIn" "In") "values" $nodes }}
  {{- $terms := list }}
  {{- range dig "nodeAffinity" "requiredDuringSchedulingIgnoredDuringExecution" "nodeSelectorTerms" (list dict) $affinity }}
    {{- $terms = append $terms (merge (dict "matchExpressions" (append (.matchExpressions | default list) $expression)) .) }}
  {{- end }}
  {{- $affinity = mergeOverwrite $affinity (dict "nodeAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms))) }}
{{- end }}
{{- toYaml $affinity }}
{{- end }}

{{/* The names of all DaemonSets, in quotes. */}}
{{- define "btrfs-csi.daemonSets" -}}
{{- $name := include "btrfs-csi.fullname" . -}}
'{{ $name }}'{{ range .Values.nodeGroups }}, '{{ $name }}-{{ .name }}'{{ end }}
{{- end }}
