"""The Kubernetes API beyond what Kopf watches: lists, patches and Events."""
