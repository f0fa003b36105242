"""The image, built once a session, and containers of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sandbox import images, kubelet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.cluster import Cluster
    from sandbox.images import Image


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    for reason in (images.unavailable(), kubelet.unavailable()):
        if reason is not None:
            pytest.skip(reason)
    with images.Images() as storage:
        yield storage.build(REVISION="0123456789abcdef", SOURCE="https://git.example/podlink")


@pytest.fixture(scope="session")
def cluster(cluster: Cluster) -> Cluster:
    """The sandbox's: where there are kubelets, they would run the pods too, or try to."""
    if cluster.control_plane is None:
        pytest.skip("containers are run for a cluster without kubelets; --cluster=sandbox would un-skip it")
    return cluster
