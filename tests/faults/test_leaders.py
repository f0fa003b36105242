"""Several operators stand by for each other: one works at a time, and another goes on whatever happens to it."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from cluster.harness import Kube, Wire, disagreement
from cluster.operators import Operator, start_operator
from sandbox.processes import eventually, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.cluster import Cluster
    from sandbox.control_plane import ControlPlane
    from sandbox.redis_servers import RedisServer

    Elect = Callable[[], Operator]

TAKEOVER_SECONDS = 60
"""A Lease that is not renewed ends after 15 s; the rest is for a busy machine."""


@pytest.fixture
def elect(cluster: Cluster, kube: Kube, redis_server: RedisServer) -> Iterator[Elect]:
    """Starts operators that stand for the same Lease, in the namespace of the test."""
    flags = ["--redis-url", redis_server.url, "--namespace", kube.namespace]
    flags += ["--leader-elect", "--lease-namespace", kube.namespace]
    with ExitStack() as stack:

        def start() -> Operator:
            operator = stack.enter_context(start_operator(cluster, *flags))
            operator.await_start()
            operator.await_ready()
            return operator

        yield start


def leads(operator: Operator) -> bool:
    return operator.metric("podlink_leader") == 1


def lease(kube: Kube) -> dict:
    (found,) = kube.list("leases")
    return found["spec"]


def await_work(kube: Kube, wire: Wire, name: str) -> None:
    kube.link(name, podId=1)
    eventually(lambda: kube.report(name), ("Linked", "Linked", 1), timeout=TAKEOVER_SECONDS)
    eventually(lambda: disagreement(kube, wire), {})


def test_the_second_stands_by_until_the_first_gives_the_lease_back(kube: Kube, wire: Wire, elect: Elect) -> None:
    first = elect()
    until(lambda: leads(first), 60, "the first to lead")
    second = elect()
    await_work(kube, wire, "by-the-first")

    assert not leads(second)
    assert second.metric('podlink_podlinks{phase="Linked"}') == 0
    assert second.metric("podlink_redis_up") == 1, "a standby finds out about its Redis before it is needed"
    assert lease(kube)["holderIdentity"]

    assert first.process.stop(grace_seconds=20) == 0
    # Not by the end of the Lease: it is at its second holder before the 15 s of the first are over.
    until(lambda: leads(second), 10, "the second to take the lease that was given back")
    assert lease(kube)["leaseTransitions"] >= 1
    await_work(kube, wire, "by-the-second")
    assert not first.faults() + second.faults()


def test_a_leader_that_is_killed_is_replaced(kube: Kube, wire: Wire, elect: Elect) -> None:
    first = elect()
    until(lambda: leads(first), 60, "the first to lead")
    second = elect()
    first.process.kill()
    kube.scale("lobby", 3)
    until(lambda: leads(second), TAKEOVER_SECONDS, "the second to lead")
    eventually(wire.states, {"0": "Ready", "1": "Ready", "2": "Ready"})
    await_work(kube, wire, "after-the-first")
    assert not second.faults()


def test_a_leader_that_hung_stands_by_when_it_wakes(kube: Kube, wire: Wire, elect: Elect) -> None:
    first = elect()
    until(lambda: leads(first), 60, "the first to lead")
    second = elect()
    await_work(kube, wire, "before-it-hung")
    assert first.metric('podlink_podlinks{phase="Linked"}') == 1
    first.process.signal(signal.SIGSTOP)
    try:
        until(lambda: leads(second), TAKEOVER_SECONDS, "the second to lead")
        kube.scale("lobby", 1)
        eventually(wire.states, {"0": "Ready"}, timeout=TAKEOVER_SECONDS)
    finally:
        first.process.signal(signal.SIGCONT)
    until(lambda: not leads(first), 20, "the first to see that it does not lead any more")
    assert 'podlink_podlinks{phase="Linked"}' not in first.metrics(), "what it last saw is not for it to tell"
    assert leads(second)
    assert wire.states() == {"0": "Ready"}, "what the first still believed was not written"
    first.await_ready()


def test_a_leader_without_an_api_server_leads_again_when_it_returns(
    control_plane: ControlPlane, kube: Kube, wire: Wire, elect: Elect
) -> None:
    only = elect()
    until(lambda: leads(only), 60, "it to lead")
    control_plane.stop_api_server()
    try:
        until(lambda: not leads(only), 40, "it to give up a lease that it cannot renew")
        assert 'podlink_podlinks{phase="Linked"}' not in only.metrics()
        assert "Lease" in only.readyz()[1]
    finally:
        control_plane.start_api_server()
    until(lambda: leads(only), TAKEOVER_SECONDS, "it to lead again")
    await_work(kube, wire, "after-the-outage")
    only.await_ready()
    assert not only.faults()
