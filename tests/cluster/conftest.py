"""One operator a module, for all namespaces, with a Redis of its own; each module works in a namespace of its own.

The operator resyncs every five minutes, so what a test sees within seconds came by events alone. Modules that are about
the resync define `operator_flags` anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cluster.harness import Kube, Wire
from cluster.operators import Operator, running_operator
from podlink import sync
from sandbox.redis_servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.cluster import Cluster


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def operator_flags() -> list[str]:
    return []


@pytest.fixture(scope="module")
def operator(cluster: Cluster, redis_server: RedisServer, operator_flags: list[str]) -> Iterator[Operator]:
    with running_operator(cluster, "--redis-url", redis_server.url, *operator_flags) as running:
        yield running


@pytest.fixture(scope="module")
def kube(cluster: Cluster, operator: Operator) -> Iterator[Kube]:
    name = cluster.create_namespace()
    with Kube(cluster, name) as client:
        yield client
    cluster.delete_namespace(name)


@pytest.fixture(scope="module")
def wire(redis_server: RedisServer, kube: Kube) -> Iterator[Wire]:
    with redis_server.client() as client:
        yield Wire(client, kube.namespace)


@pytest.fixture(scope="module")
def gateway(redis_server: RedisServer) -> Iterator[sync.StatefulExecutor]:
    """Somebody else who links users: a service that shares the Redis."""
    with sync.StatefulExecutor.from_url(redis_server.url) as executor:
        yield executor
