"""Picks over ten pods differ by at most one a pod, whoever makes them, when nobody crashes in between.

On a Cluster too, for a pick is one step on the service's slot, and what it reserves becomes the link. Only where
several callers pick for one and the same uid at once, the losers' reservations may turn away others until they are
given back.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

import pytest

from effort import by_profile
from podlink import StatefulExecutor
from proofs.picking import pick
from sandbox.redis_cluster import ClusterSet
from store.harness import LOAD, NS, STATE, SVC, Topology

if TYPE_CHECKING:
    import redis

PODS = 10
PICKS = by_profile(3_000, 10_000)
PICKS_ON_A_CLUSTER = 2_000
"""Of single calls, which take three round trips each there."""
TASKS = 250
PROCESSES = 3


def assert_even(raw: redis.Redis, picks: Counter[int | None], wanted: int) -> None:
    assert picks.total() == wanted
    assert len(picks) == PODS
    assert max(picks.values()) - min(picks.values()) <= 1
    assert {int(pod): int(load) for pod, load in raw.hgetall(LOAD).items()} == picks


async def test_many_tasks_pick_evenly(server: Topology, raw: redis.Redis) -> None:
    raw.hset(STATE, mapping={str(pod): "Ready" for pod in range(PODS)})
    picks: Counter[int | None] = Counter()
    wanted = PICKS_ON_A_CLUSTER if isinstance(server, ClusterSet) else PICKS

    async def pick_on(executor: StatefulExecutor, task: int) -> None:
        for number in range(task, wanted, TASKS):
            picks[await executor.compute_linked_pod_if_absent(NS, f"u{number}", SVC)] += 1

    async with StatefulExecutor.from_url(server.url, timeout_seconds=60) as executor:
        await asyncio.gather(*(pick_on(executor, task) for task in range(TASKS)))
    assert_even(raw, picks, wanted)


@pytest.mark.only_on(
    "valkey", "redis", "cluster", reason="TLS and Sentinels change how one connects, and not what runs"
)
def test_several_processes_pick_evenly(server: Topology, raw: redis.Redis) -> None:
    raw.hset(STATE, mapping={str(pod): "Ready" for pod in range(PODS)})
    picks: Counter[int | None] = Counter()
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as processes:
        uids = [[f"u{number}" for number in range(process, PICKS, PROCESSES)] for process in range(PROCESSES)]
        for made in processes.map(pick, [server.url] * PROCESSES, uids, [500] * PROCESSES):
            picks += made
    assert_even(raw, picks, PICKS)
