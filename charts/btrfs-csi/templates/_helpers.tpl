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

{{/* What a component's pods are chosen by; it cannot change later. Called with (list . "component"). */}}
{{- define "btrfs-csi.selector" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ $.Chart.Name }}
app.kubernetes.io/instance: {{ $.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "btrfs-csi.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* An image of values. Called with (list . .Values.<...>.image). */}}
{{- define "btrfs-csi.image" -}}
{{- $ := index . 0 -}}
{{- $image := index . 1 -}}
image: {{ printf "%s:%s" $image.repository ($image.tag | default $.Chart.AppVersion) | quote }}
imagePullPolicy: {{ $.Values.image.pullPolicy }}
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

{{/* "true" where VolumeSnapshotClasses can be made. */}}
{{- define "btrfs-csi.snapshotClasses" -}}
{{- and .Values.snapshotter.enabled (.Capabilities.APIVersions.Has "snapshot.storage.k8s.io/v1") }}
{{- end }}
