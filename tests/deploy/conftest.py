"""Real clusters for what people install: as they are before PodLink, and with the types of the Prometheus operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploy.scraping import Scraped, scrape
from sandbox import binaries
from sandbox.cluster import CRD, FINALIZER_POLICY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.cluster import Cluster
    from sandbox.control_plane import ControlPlane


@pytest.fixture(scope="session")
def scraped(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """An operator's metrics after all that can happen to it, and a Prometheus that has them."""
    with scrape(cluster, tmp_path_factory.mktemp("prometheus")) as result:
        yield result


@pytest.fixture
def bare_cluster(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The cluster without the type PodLink and the finalizer policy, which are back afterwards."""
    control_plane.kubectl("delete", "-f", CRD, "-f", FINALIZER_POLICY)
    yield control_plane
    # What a test left of them carries the marks of its release, as labels and annotations.
    control_plane.kubectl("delete", "--ignore-not-found", "-f", CRD, "-f", FINALIZER_POLICY)
    control_plane.install_podlink()
    control_plane.await_podlinks()


@pytest.fixture(scope="module")
def monitored_cluster(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The cluster with the types that the Prometheus operator brings."""
    directory = binaries.prometheus_operator_crds()
    types = [directory / f"monitoring.coreos.com_{name}.yaml" for name in ("servicemonitors", "prometheusrules")]
    files = [word for path in types for word in ("-f", str(path))]
    control_plane.kubectl("create", *files)
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", *files)
    yield control_plane
    control_plane.kubectl("delete", *files)


@pytest.fixture
def restricted(cluster: Cluster, namespace: str) -> str:
    """A namespace where only pods of the restricted Pod Security standard get in, and others are told of."""
    labels = [f"pod-security.kubernetes.io/{mode}=restricted" for mode in ("enforce", "warn")]
    cluster.kubectl("label", "namespace", namespace, *labels)
    return namespace
