"""Here each test has a Redis, a namespace and operators of its own, and breaks them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cluster.harness import Kube, Wire
from cluster.operators import Operator, running_operator
from sandbox.processes import eventually
from sandbox.redis_servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from sandbox.cluster import Cluster

    Start = Callable[..., AbstractContextManager[Operator]]


@pytest.fixture
def redis_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """Comes back from a restart with its data, or, with the parameter "empty", without."""
    empty = getattr(request, "param", "with its data") == "empty"
    with RedisServer(data_dir=None if empty else tmp_path) as server:
        yield server


@pytest.fixture
def kube(cluster: Cluster, namespace: str) -> Iterator[Kube]:
    """A namespace with a service `lobby` of two Ready pods."""
    with Kube(cluster, namespace) as client:
        client.stateful_set("lobby", 2)
        yield client
        client.clear()


@pytest.fixture
def wire(redis_server: RedisServer, kube: Kube) -> Iterator[Wire]:
    with redis_server.client() as client:
        yield Wire(client, kube.namespace)


@pytest.fixture
def start(cluster: Cluster, kube: Kube, redis_server: RedisServer) -> Start:
    """Starts an operator for the namespace and waits until it is ready."""

    def start(*flags: str) -> AbstractContextManager[Operator]:
        return running_operator(cluster, "--redis-url", redis_server.url, "--namespace", kube.namespace, *flags)

    return start


@pytest.fixture
def operator(start: Start, wire: Wire) -> Iterator[Operator]:
    with start() as running:
        eventually(wire.states, {"0": "Ready", "1": "Ready"})
        yield running
