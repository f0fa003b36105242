"""Whatever is called in whatever order, the executor answers and Redis holds what the contract says.

pytest tests/proofs/test_model.py --hypothesis-profile=long --timeout=0      fifty times as many histories
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from effort import by_profile
from podlink import sync
from proofs.keyspace import Keyspace, pass_time
from proofs.machine import Asynchronous, Blocking, Subject, check_histories
from sandbox.processes import until
from sandbox.redis_cluster import ClusterSet
from store.harness import LINK, NS, ONE_SERVER, SVC, UID, Topology

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

EXAMPLES = {"valkey": 25, "redis": 25, "cluster": 8}
LONG = 50


@pytest.fixture(params=[Asynchronous, Blocking], ids=["async", "blocking"])
def subject(request: pytest.FixtureRequest, server: Topology) -> Iterator[Subject]:
    made = request.param(server.url)
    yield made
    made.close()


@pytest.mark.only_on(*EXAMPLES, reason="TLS and Sentinels change how one connects, and not what a call does")
def test_every_history_is_as_the_contract_says(subject: Subject, server: Topology, raw: redis.Redis) -> None:
    clustered = isinstance(server, ClusterSet)
    times = by_profile(1, LONG)
    check_histories(
        subject,
        raw,
        examples=EXAMPLES["cluster" if clustered else server.kind] * times,
        expires_fields=server.expires_fields,
        clustered=clustered,
    )


@pytest.mark.only_on(*ONE_SERVER, reason="they differ in what they expire")
def test_letting_time_pass_is_as_good_as_waiting(server: Topology, raw: redis.Redis) -> None:
    """What the histories rely on."""

    def facts_after(passing: str) -> dict[tuple[str, str], str]:
        raw.flushall()
        with sync.StatefulExecutor.from_url(server.url) as executor:
            executor.set_linked_pod(NS, UID, SVC, 1, persist_seconds=1)
            executor.set_linked_pod(NS, UID, "arena", 2)
            executor.set_linked_pod(NS, "other", SVC, 3)
            executor.remove_linked_pod(NS, "other", SVC, persist_seconds=1)
        if passing == "waiting":
            until(lambda: raw.dbsize() and not raw.exists(LINK, "sf:{games:lk:other}lobby"), 10, "two links to end")
        else:
            pass_time(raw, 1)
        found = Keyspace(raw)
        assert not found.problems
        return {name: value for name, (value, _) in found.facts.items()}

    assert facts_after("waiting") == facts_after("a script")
