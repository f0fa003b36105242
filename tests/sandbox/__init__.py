"""Real servers for tests and for `make run`: a Kubernetes control plane and Redis, as local processes."""
