"""Picking a pod: only Ready ones, the least loaded first, ties spread, and one winner however many ask."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from podlink import StatefulExecutor, sync
from podlink.store import operations
from store.harness import EXPIRY, LINK, LINKS, LOAD, NS, STATE, SVC, UID, Awaited, Topology, Wire

if TYPE_CHECKING:
    import redis


NOT_ROUTABLE = ["Pending", "NotReady", "Draining", "Terminating", "Failed", "Succeeded"]


def all_ready(raw: redis.Redis, pods: int) -> None:
    raw.hset(STATE, mapping={str(pod): "Ready" for pod in range(pods)})


async def test_no_ready_pod_means_none_and_nothing_written(executor: Awaited, wire: Wire) -> None:
    assert await executor.compute_linked_pod_if_absent(NS, UID, SVC) is None
    wire.redis.hset(STATE, mapping={str(pod): state for pod, state in enumerate(NOT_ROUTABLE)})
    assert await executor.compute_linked_pod_if_absent(NS, UID, SVC) is None
    assert await executor.run(operations.reserve_service_pod(NS, SVC)) is None
    assert wire.redis.keys() == [STATE]


async def test_only_a_ready_pod_is_picked_pod_0_too(executor: Awaited, raw: redis.Redis) -> None:
    raw.hset(STATE, mapping={"0": "Ready"} | {str(pod): state for pod, state in enumerate(NOT_ROUTABLE, start=1)})
    assert await executor.compute_linked_pod_if_absent(NS, UID, SVC) == 0
    assert await executor.compute_linked_pod_if_absent(NS, "another", SVC) == 0
    assert await executor.get_linked_services(NS, UID) == {SVC: 0}


async def test_the_least_loaded_pod_is_picked(executor: Awaited, raw: redis.Redis) -> None:
    all_ready(raw, 3)
    for uid, pod in [("a", 0), ("b", 0), ("c", 2)]:
        await executor.set_linked_pod(NS, uid, SVC, pod)
    assert await executor.compute_linked_pod_if_absent(NS, "d", SVC) == 1
    assert {await executor.compute_linked_pod_if_absent(NS, uid, SVC) for uid in ("e", "f")} == {1, 2}


async def test_load_of_a_pod_that_is_not_ready_does_not_count(executor: Awaited, raw: redis.Redis) -> None:
    raw.hset(STATE, mapping={"0": "Draining", "1": "Ready"})
    await executor.set_linked_pod(NS, "a", SVC, 1)
    assert await executor.compute_linked_pod_if_absent(NS, "b", SVC) == 1


@pytest.mark.parametrize("how", ["compute", "reserve"])
async def test_a_pod_whose_load_is_no_number_is_passed_over(executor: Awaited, raw: redis.Redis, how: str) -> None:
    raw.hset(STATE, "0", "Ready")
    raw.hset(LOAD, "0", "many")
    uids = iter(["a", "b"])

    async def pick() -> int | None:
        if how == "compute":
            return await executor.compute_linked_pod_if_absent(NS, next(uids), SVC)
        return await executor.run(operations.reserve_service_pod(NS, SVC))

    assert await pick() is None
    assert sorted(raw.keys()) == [STATE, LOAD]
    assert raw.hgetall(LOAD) == {"0": "many"}
    raw.hset(STATE, "1", "Ready")
    raw.hset(LOAD, "1", "7")
    assert await pick() == 1
    assert raw.hgetall(LOAD) == {"0": "many", "1": "8"}
    raw.flushall()


async def test_existing_link_is_returned_even_to_a_pod_that_is_gone(executor: Awaited, raw: redis.Redis) -> None:
    all_ready(raw, 2)
    await executor.set_linked_pod(NS, UID, SVC, 77, persist_seconds=60)
    assert await executor.compute_linked_pod_if_absent(NS, UID, SVC) == 77
    assert await executor.get_linked_pod_if_persist(NS, UID, SVC) is None


async def test_computed_link_may_be_temporary(executor: Awaited, wire: Wire) -> None:
    all_ready(wire.redis, 1)
    await executor.compute_linked_pod_if_absent(NS, UID, SVC, persist_seconds=60)
    assert 55_000 < wire.milliseconds(LINK) <= 60_000
    assert await executor.get_linked_pod_if_persist(NS, UID, SVC) is None


async def test_many_picks_are_even(aexecutor: StatefulExecutor, raw: redis.Redis) -> None:
    all_ready(raw, 10)
    picks = Counter(
        await asyncio.gather(*(aexecutor.compute_linked_pod_if_absent(NS, f"u{n}", SVC) for n in range(304)))
    )
    assert len(picks) == 10
    assert max(picks.values()) - min(picks.values()) <= 1


@pytest.mark.parametrize("how", ["compute", "reserve"])
async def test_ties_spread(executor: Awaited, raw: redis.Redis, how: str) -> None:
    all_ready(raw, 4)
    # Each pick is given back, so each is made among four pods of equal load.
    picks = []
    for _ in range(60):
        if how == "compute":
            picks.append(await executor.compute_linked_pod_if_absent(NS, UID, SVC))
            await executor.remove_linked_pod(NS, UID, SVC)
        else:
            picks.append(await executor.run(operations.reserve_service_pod(NS, SVC)))
            await executor.run(operations.release_service_pod(NS, SVC, picks[-1]))
    assert set(picks) == {0, 1, 2, 3}
    assert max(Counter(picks).values()) < 40


@pytest.mark.parametrize("how", ["compute", "reserve"])
async def test_living_temporary_links_are_load(executor: Awaited, raw: redis.Redis, how: str) -> None:
    all_ready(raw, 2)
    await executor.set_linked_pod(NS, "temporary", SVC, 0, persist_seconds=60)
    if how == "compute":
        assert await executor.compute_linked_pod_if_absent(NS, UID, SVC) == 1
    else:
        assert await executor.run(operations.reserve_service_pod(NS, SVC)) == 1
    assert raw.hgetall(LOAD) == {"0": "1", "1": "1"}
    if how == "reserve":
        await executor.run(operations.release_service_pod(NS, SVC, 1))


async def test_one_winner_among_many_tasks(aexecutor: StatefulExecutor, raw: redis.Redis) -> None:
    all_ready(raw, 10)
    told = await asyncio.gather(*(aexecutor.compute_linked_pod_if_absent(NS, UID, SVC) for _ in range(300)))
    assert len(set(told)) == 1
    assert await aexecutor.get_linked_pod(NS, UID, SVC) == told[0]
    assert raw.hgetall(LOAD) == {str(told[0]): "1"}


def test_one_winner_among_many_threads(server: Topology, raw: redis.Redis) -> None:
    all_ready(raw, 10)
    with sync.StatefulExecutor.from_url(server.url, max_connections=8) as executor, ThreadPoolExecutor(16) as threads:
        told = list(threads.map(lambda _: executor.compute_linked_pod_if_absent(NS, UID, SVC), range(100)))
    assert len(set(told)) == 1
    assert raw.hgetall(LOAD) == {str(told[0]): "1"}


async def test_set_if_absent_has_one_winner_too(aexecutor: StatefulExecutor, raw: redis.Redis) -> None:
    told = await asyncio.gather(*(aexecutor.set_linked_pod_if_absent(NS, UID, SVC, pod) for pod in range(100)))
    assert len(set(told)) == 1
    assert raw.hgetall(LOAD) == {str(told[0]): "1"}


@pytest.mark.usefixtures("leaves_orphans")
async def test_reserved_unit_counts_until_it_is_given_back(executor: Awaited, raw: redis.Redis) -> None:
    all_ready(raw, 2)
    pods = [await executor.run(operations.reserve_service_pod(NS, SVC)) for _ in range(4)]
    assert sorted(pods) == [0, 0, 1, 1]
    assert raw.hgetall(LOAD) == {"0": "2", "1": "2"}
    assert await executor.run(operations.release_service_pod(NS, SVC, 0)) is True
    assert await executor.run(operations.reserve_service_pod(NS, SVC)) == 0
    for _ in range(2):
        assert await executor.run(operations.release_service_pod(NS, SVC, 0)) is True
    assert raw.hgetall(LOAD) == {"1": "2"}
    assert await executor.run(operations.release_service_pod(NS, SVC, 0)) is False
    assert raw.hgetall(LOAD) == {"1": "2"}


async def test_link_in_two_steps_across_slots_leaves_no_load_with_the_loser(
    executor: Awaited, wire: Wire, raw: redis.Redis
) -> None:
    all_ready(raw, 2)
    await executor.set_linked_pod(NS, UID, SVC, 1)
    reserved = await executor.run(operations.reserve_service_pod(NS, SVC))
    assert int(wire("statefulSetLinkIfAbsent", [LINK, LINKS], SVC, reserved, -1)) == 1
    await executor.run(operations.release_service_pod(NS, SVC, reserved))
    assert raw.hgetall(LOAD) == {"1": "1"}


@pytest.mark.usefixtures("leaves_orphans")
async def test_reserving_by_the_state_key_alone(wire: Wire) -> None:
    all_ready(wire.redis, 1)
    assert wire("statefulGetServicePod", [STATE]) == "0"
    assert wire("statefulGetService", [STATE]) == [["0", "Ready"], ["0", "1"]]
    assert wire("statefulGetServicePod", [STATE], "0") == "0"
    assert wire("statefulGetServicePod", [STATE, LOAD, EXPIRY], "0") == -1
