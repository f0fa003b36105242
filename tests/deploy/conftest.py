"""What tests of the deployment find in the cluster.

It is as before PodLink (`bare_cluster`), or has the types of the Prometheus operator (`monitored_cluster`), a namespace
with the strictest Pod Security (`restricted`), or an operator that was through everything, with its metrics in a
Prometheus (`scraped`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploy.scraping import Scraped, scrape

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandbox.cluster import Cluster
    from sandbox.control_plane import ControlPlane


@pytest.fixture(scope="session")
def scraped(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """An operator's metrics after all that can happen to it, and a Prometheus that has them."""
    with scrape(cluster, tmp_path_factory.mktemp("prometheus")) as result:
        yield result


@pytest.fixture(scope="module")
def cleared_cluster(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The cluster without the type PodLink and the finalizer policy, which are back afterwards."""
    control_plane.kubectl("delete", *control_plane.podlink_files())
    yield control_plane
    control_plane.install_podlink()
    # Takes its seconds, which is why tests of a module share this.
    control_plane.await_podlinks()


@pytest.fixture
def bare_cluster(cleared_cluster: ControlPlane) -> Iterator[ControlPlane]:
    """As `cleared_cluster`, whatever the test before left of type and policy, with the marks of its release."""
    yield cleared_cluster
    cleared_cluster.kubectl("delete", "--ignore-not-found", *cleared_cluster.podlink_files())


@pytest.fixture(scope="module")
def monitored_cluster(control_plane: ControlPlane, monitoring_types: list[Path]) -> Iterator[ControlPlane]:
    """The cluster with the types that the Prometheus operator brings."""
    files = [word for path in monitoring_types for word in ("-f", str(path))]
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
