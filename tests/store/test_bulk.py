"""Bulk methods: what they return, what goes wrong for some, and how they travel."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from podlink import InvalidArgument, PartialFailure, RedisUnavailable, ScriptError, StatefulExecutor
from podlink.store.aio.queue import MAX_IN_FLIGHT
from podlink.store.batching.merging import BATCH_SIZE
from store.harness import LOAD, NS, ONE_PRIMARY, SVC, Awaited, Wire

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from sandbox.redis_servers import RedisServer

UIDS = [f"u{n}" for n in range(300)]


async def test_links_of_many_uids_are_set_moved_found_and_removed(executor: Awaited, raw: redis.Redis) -> None:
    assert await executor.set_linked_pods(NS, dict.fromkeys(UIDS, 1), SVC) == dict.fromkeys(UIDS)
    assert await executor.set_linked_pods(NS, {"u0": 2, "u1": 3}, SVC) == {"u0": 1, "u1": 1}
    assert await executor.get_linked_pods(NS, UIDS, SVC) == {2: ["u0"], 3: ["u1"], 1: UIDS[2:]}
    assert await executor.remove_linked_pods_with_id(NS, {"u0": 1, "u1": 3}, SVC) == {"u0": False, "u1": True}
    assert await executor.remove_linked_pods(NS, UIDS, SVC) == dict.fromkeys(UIDS, True) | {"u1": False}
    assert raw.keys() == []


async def test_try_set_leaves_permanent_links_to_others_alone(executor: Awaited) -> None:
    await executor.set_linked_pods(NS, {"u0": 1, "u1": 1, "u2": 1}, SVC)
    await executor.set_linked_pods(NS, {"u3": 1}, SVC, persist_seconds=60)
    told = await executor.try_set_linked_pods(NS, dict.fromkeys(UIDS[:5], 2), SVC, expected={"u1": 1, "u2": 7})
    assert told == {"u0": (False, 1), "u1": (True, 2), "u2": (False, 1), "u3": (True, 2), "u4": (True, 2)}


async def test_if_absent_and_compute(executor: Awaited, raw: redis.Redis) -> None:
    assert await executor.compute_linked_pods_if_absent(NS, UIDS[:2], SVC) == {"u0": None, "u1": None}
    assert await executor.set_linked_pods_if_absent(NS, {"u0": 4, "u1": 5}, SVC) == {"u0": 4, "u1": 5}
    assert await executor.set_linked_pods_if_absent(NS, {"u0": 1, "u2": 1}, SVC) == {"u0": 4, "u2": 1}
    for pod in range(10):
        await executor.set_service_state(NS, SVC, pod, "Ready")
    pods = await executor.compute_linked_pods_if_absent(NS, UIDS, SVC)
    assert (pods["u0"], pods["u1"], pods["u2"]) == (4, 5, 1)
    loads = sorted(map(int, raw.hgetall(LOAD).values()))
    assert sum(loads) == len(UIDS)
    assert loads[-1] - loads[0] <= 1


async def test_temporary_links_and_reconnect_windows(executor: Awaited, wire: Wire) -> None:
    await executor.set_linked_pods(NS, {"u0": 1}, SVC, persist_seconds=60)
    assert 0 < wire.milliseconds(f"sf:{{{NS}:lk:u0}}{SVC}") <= 60_000
    assert await executor.remove_linked_pods(NS, ["u0"], SVC, persist_seconds=30) == {"u0": True}
    assert await executor.get_linked_pods(NS, ["u0"], SVC) == {1: ["u0"]}
    assert await executor.get_linked_services(NS, "u0") == {}


async def test_nothing_asked_is_nothing_sent(executor: Awaited, raw: redis.Redis) -> None:
    before = raw.info("stats")["total_connections_received"]
    assert await executor.set_linked_pods(NS, {}, SVC) == {}
    assert await executor.remove_linked_pods(NS, [], SVC) == {}
    assert await executor.get_linked_pods(NS, [], SVC) == {}
    assert raw.info("stats")["total_connections_received"] == before


@pytest.mark.parametrize(
    ("method", "argument", "refused"),
    [
        ("set_linked_pods", "pods", ["u1"]),
        ("set_linked_pods", "pods", {"u1": -1}),
        ("set_linked_pods", "pods", {"u1": True}),
        ("set_linked_pods", "pods", {"u}1": 1}),
        ("set_linked_pods_if_absent", "pods", {1: 1}),
        ("remove_linked_pods_with_id", "pods", {"": 1}),
        ("compute_linked_pods_if_absent", "uids", "u1"),
        ("remove_linked_pods", "uids", ["u1", "\n"]),
        ("get_linked_pods", "uids", [None]),
    ],
)
async def test_one_bad_argument_and_nothing_is_sent(
    executor: Awaited, raw: redis.Redis, method: str, argument: str, refused: Any
) -> None:
    with pytest.raises(InvalidArgument) as error:
        await getattr(executor, method)(NS, refused, SVC)
    assert error.value.argument == argument
    assert raw.keys() == []


async def test_what_went_wrong_for_some_is_told_with_what_did_not(executor: Awaited, raw: redis.Redis) -> None:
    raw.rpush(f"sf:{{{NS}:lk:u70}}{SVC}", "no string")
    with pytest.raises(PartialFailure, match=r"1 of 300 calls failed.*WRONGTYPE") as error:
        await executor.set_linked_pods(NS, dict.fromkeys(UIDS, 1), SVC)
    assert {uid: type(problem) for uid, problem in error.value.errors.items()} == {"u70": ScriptError}
    assert error.value.results == {uid: None for uid in UIDS if uid != "u70"}
    raw.delete(f"sf:{{{NS}:lk:u70}}{SVC}")


async def test_when_all_fail_alike_one_error_speaks_for_all(own_server: Callable[..., RedisServer]) -> None:
    server = own_server()
    async with StatefulExecutor.from_url(server.url, timeout_seconds=1) as executor:
        await executor.set_linked_pods(NS, {"u0": 1}, SVC)
        server.freeze()
        with pytest.raises(RedisUnavailable) as error:
            await executor.set_linked_pods(NS, dict.fromkeys(UIDS, 1), SVC)
        assert error.value.maybe_applied is True
        server.kill()
        with pytest.raises(RedisUnavailable) as error:
            await executor.set_linked_pods(NS, dict.fromkeys(UIDS, 1), SVC)
        assert error.value.maybe_applied is False


async def test_of_a_cancelled_bulk_nothing_more_is_sent(own_server: Callable[..., RedisServer]) -> None:
    server = own_server()
    uids = [f"u{n}" for n in range((MAX_IN_FLIGHT + 4) * BATCH_SIZE)]
    async with StatefulExecutor.from_url(server.url) as executor:
        await executor.set_linked_pods(NS, {"first": 1}, SVC)
        server.freeze()
        bulk = asyncio.create_task(executor.set_linked_pods(NS, dict.fromkeys(uids, 1), SVC))
        await asyncio.sleep(0)  # as many of its parts leave as may be under way
        bulk.cancel()
        await asyncio.wait([bulk])
        server.thaw()
    # Closing has waited for all that was still to be sent.
    with server.client() as raw:
        assert raw.hgetall(LOAD) == {"1": str(1 + MAX_IN_FLIGHT * BATCH_SIZE)}


@pytest.mark.only_on(*ONE_PRIMARY, reason="in a Cluster each call goes to the server of its uid")
async def test_300_links_are_a_handful_of_script_calls(aexecutor: StatefulExecutor, wire: Wire) -> None:
    await aexecutor.set_linked_pods(NS, {"first": 1, "second": 1}, SVC)
    wire.redis.config_resetstat()
    await aexecutor.set_linked_pods(NS, dict.fromkeys(UIDS, 1), SVC)
    assert wire.script_calls() == -(-300 // BATCH_SIZE) == 8


@pytest.mark.only_on(*ONE_PRIMARY, reason="in a Cluster bulks are single calls too")
async def test_single_calls_do_not_wait_for_ever_behind_bulks(aexecutor: StatefulExecutor) -> None:
    done = asyncio.Event()

    async def bulks(number: int) -> None:
        while not done.is_set():
            await aexecutor.set_linked_pods(NS, {f"{number}-{uid}": 1 for uid in UIDS}, SVC)

    tasks = [asyncio.create_task(bulks(number)) for number in range(10)]
    for pod in range(20):
        assert await aexecutor.set_linked_pod(NS, "single", SVC, pod) in {None, pod - 1}
    done.set()
    await asyncio.gather(*tasks)


async def test_the_uid_of_a_pod_that_is_none_is_named(executor: Awaited) -> None:
    for call, argument in (
        (executor.set_linked_pods(NS, {"u0": 1, "u1": -1}, SVC), "pods"),
        (executor.try_set_linked_pods(NS, {"u1": 1}, SVC, expected={"u1": "1"}), "expected"),
    ):
        with pytest.raises(InvalidArgument, match=r"of uid 'u1'") as error:
            await call
        assert error.value.argument == argument
