"""The operator on what Redis can be besides one server: behind Sentinels, a Cluster; with a password and TLS on top."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from cluster.harness import Kube, Wire, disagreement
from podlink import sync
from podlink.store import operations
from sandbox.certificates import write_redis_certificates
from sandbox.processes import eventually
from sandbox.redis_cluster import ClusterSet
from sandbox.redis_sentinel import SentinelSet
from sandbox.redis_servers import RedisServer
from store.harness import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cluster.operators import Operator
    from faults.conftest import Start

Replicated: TypeAlias = SentinelSet | ClusterSet

PASSWORD = "correct-horse-battery-staple"
USERS = 12
"""PodLinks; enough of them that each primary of a cluster holds some."""


@pytest.fixture
def redis_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Replicated | RedisServer]:
    def tls() -> RedisServer:
        need("redis")
        return RedisServer("redis", password=PASSWORD, tls=write_redis_certificates(tmp_path))

    make: dict[str, Callable[[], Any]] = {
        "sentinel": lambda: SentinelSet(password=PASSWORD),
        "cluster": lambda: ClusterSet(password=PASSWORD),
        "tls": tls,
    }
    with make[request.param]() as server:
        yield server


@pytest.fixture
def operator(start: Start, wire: Wire) -> Iterator[Operator]:
    with start("--resync-seconds", "1") as running:
        eventually(wire.states, {"0": "Ready", "1": "Ready"})
        yield running


@pytest.fixture
def links(kube: Kube, operator: Operator) -> list[str]:
    """PodLinks whose links are made."""
    names = [f"user-{number}" for number in range(USERS)]
    for name in names:
        kube.link(name)
    for name in names:
        eventually(lambda name=name: kube.report(name)[:2], ("Linked", "Linked"))
    return names


def assert_no_secret(operator: Operator) -> None:
    assert PASSWORD not in operator.process.log_path.read_text() + operator.metrics() + operator.readyz()[1]


@pytest.mark.parametrize("redis_server", ["sentinel", "cluster", "tls"], indirect=True)
def test_states_and_links_are_as_on_one_server(
    kube: Kube, wire: Wire, operator: Operator, links: list[str], redis_server: Replicated | RedisServer
) -> None:
    eventually(lambda: disagreement(kube, wire), {})
    assert wire.loads() == {"0": str(USERS // 2), "1": str(USERS // 2)}

    kube.scale("lobby", 3)
    eventually(wire.states, {"0": "Ready", "1": "Ready", "2": "Ready"})
    for name in links[::2]:
        kube.unlink(name)
    with sync.StatefulExecutor.from_url(redis_server.url) as gateway:
        # The sweep finds what nobody tells it, whichever server has it.
        gateway.remove_linked_pods(kube.namespace, links[1::2], "lobby")
        for number in range(USERS):
            gateway.run(operations.set_service_state(kube.namespace, f"gone-{number}", 0, "Ready", version=1))
    eventually(lambda: disagreement(kube, wire), {})
    assert {kube.report(name)[:2] for name in links[1::2]} == {("Linked", "Linked")}
    assert_no_secret(operator)


@pytest.mark.parametrize("redis_server", ["sentinel", "cluster"], indirect=True)
def test_a_primary_is_lost(
    kube: Kube, wire: Wire, operator: Operator, links: list[str], redis_server: Replicated
) -> None:
    eventually(lambda: disagreement(kube, wire), {})
    lost = redis_server.primaries()[0]
    lost.kill()
    more = [f"meanwhile-{number}" for number in range(USERS)]
    for name in more:
        kube.link(name)
    redis_server.await_failover(lost)

    for name in (*links, *more):
        eventually(lambda name=name: kube.report(name)[:2], ("Linked", "Linked"))
    with redis_server.client() as client:
        eventually(lambda: disagreement(kube, Wire(client, kube.namespace)), {})
    eventually(operator.readyz, (200, "ok\n"))
    assert_no_secret(operator)
