{{- define "podlink.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* The name of most objects. That of a Service must begin with a letter and has no dots, and a release may be named
       "1.lobby". */}}
{{- define "podlink.fullname" -}}
{{- $name := include "podlink.name" . }}
{{- $full := printf "%s-%s" .Release.Name $name }}
{{- if .Values.fullnameOverride }}
{{- $full = .Values.fullnameOverride }}
{{- else if contains $name .Release.Name }}
{{- $full = .Release.Name }}
{{- end }}
{{- $full = $full | replace "." "-" }}
{{- if regexMatch "^[0-9]" $full }}
{{- $full = printf "podlink-%s" $full }}
{{- end }}
{{- $full | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "podlink.selectorLabels" -}}
app.kubernetes.io/name: {{ include "podlink.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "podlink.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{ include "podlink.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "podlink.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "podlink.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "podlink.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The documents of a manifest under files/, with the release's labels and the given annotations. If namespaces are
       given, the binding of a policy is limited to them. */}}
{{- define "podlink.manifest" -}}
{{- $labels := include "podlink.labels" .root | fromYaml }}
{{- $text := required (printf "the chart lacks %s: take the whole of it" .file) (.root.Files.Get .file) }}
{{- range $document := $text | splitList "\n---\n" }}
{{- $object := fromYaml $document }}
{{- $_ := set $object.metadata "labels" $labels }}
{{- if and $.namespaces (hasSuffix "Binding" $object.kind) }}
{{- $names := dict "key" "kubernetes.io/metadata.name" "operator" "In" "values" $.namespaces }}
{{- $selected := dict "namespaceSelector" (dict "matchExpressions" (list $names)) }}
{{- $_ := set $object.spec "matchResources" $selected }}
{{- end }}
{{- with $.annotations }}
{{- $_ := set $object.metadata "annotations" . }}
{{- end }}
---
{{ toYaml $object }}
{{ end }}
{{- end }}

{{- /* The Secrets that the operator's pod mounts, without duplicates, as a JSON list. */}}
{{- define "podlink.secrets" -}}
{{- with .Values.redis }}
{{- list .urlSecret.name .passwordSecret.name .tls.secretName | compact | uniq | toJson }}
{{- end }}
{{- end }}

{{- /* An egress rule of the network policy, for these ports and peers. Without peers: for any. */}}
{{- define "podlink.egress" -}}
- ports:
    {{- range .ports }}
    - port: {{ . }}
      protocol: TCP
    {{- end }}
  {{- with .to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- /* Checks for which the schema has no clear message. */}}
{{- define "podlink.check" -}}
{{- $redis := .Values.redis }}
{{- $ways := list }}
{{- if $redis.embedded }}{{ $ways = append $ways "redis.embedded" }}{{ end }}
{{- if $redis.url }}{{ $ways = append $ways "redis.url" }}{{ end }}
{{- if $redis.urlSecret.name }}{{ $ways = append $ways "redis.urlSecret.name" }}{{ end }}
{{- if not $ways }}
{{- fail "set one of redis.urlSecret.name (a Secret with the URL of your Redis), redis.url (a URL without a password) and redis.embedded (true: a Valkey in the operator's pod, to try PodLink)" }}
{{- end }}
{{- if gt (len $ways) 1 }}
{{- fail (printf "%s are set: keep only one of them, because the operator uses one Redis" (join " and " $ways)) }}
{{- end }}
{{- if or (regexMatch "://.*:.*@" $redis.url) (regexMatch "[?&](sentinel_)?password=" $redis.url) }}
{{- fail "redis.url contains a password, which is visible in the Deployment: put the URL into a Secret and name it in redis.urlSecret.name, or only the password in redis.passwordSecret.name" }}
{{- end }}
{{- if $redis.embedded }}
{{- if gt (int .Values.replicas) 1 }}
{{- fail "replicas must be 1 with redis.embedded, because each pod would have its own Valkey: set replicas to 1, or name a Redis in redis.urlSecret.name or redis.url" }}
{{- end }}
{{- if or $redis.username $redis.passwordSecret.name $redis.tls.secretName }}
{{- fail "redis.username, redis.passwordSecret.name and redis.tls.secretName are for your own Redis: leave them out with redis.embedded" }}
{{- end }}
{{- end }}
{{- if ne (empty $redis.tls.certKey) (empty $redis.tls.keyKey) }}
{{- fail "redis.tls.certKey and redis.tls.keyKey belong together: set both (a client certificate and its key), or none" }}
{{- end }}
{{- if and $redis.tls.secretName $redis.url (not (hasPrefix "rediss" $redis.url)) }}
{{- fail "redis.tls.secretName is for TLS, but redis.url does not use TLS: begin it with rediss://, rediss+sentinel:// or rediss+cluster://" }}
{{- end }}
{{- if and .Values.tracing.enabled (not .Values.tracing.endpoint) }}
{{- fail "tracing.endpoint is empty: with tracing.enabled it must name the collector, for example http://otel-collector.tracing:4318" }}
{{- end }}
{{- end }}
