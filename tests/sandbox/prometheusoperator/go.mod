// The CRDs of the Prometheus operator (ServiceMonitor, PrometheusRule), which its module carries as files.
// Nothing is built from it: the file only names the version, and go.sum pins its content.
module podlink.io/tests/sandbox/prometheusoperator

go 1.26.0

require github.com/prometheus-operator/prometheus-operator v0.85.0
