"""Load is the number of a pod's links, exactly, after every operation; temporary links take theirs along."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from podlink import Service, StatefulExecutor
from podlink.store import operations
from sandbox.processes import until_async
from store.harness import EXPIRY, LINK, LINKS, LOAD, NS, ONE_PRIMARY, STATE, SVC, UID, WAYS_TO_LINK, Awaited, Wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import redis

    Step = Callable[[Awaited], Awaitable[object]]


def member(pod: int) -> str:
    return f"{pod} {LINK}"


def temporary(pod: int, seconds: int = 60) -> Step:
    return lambda executor: executor.set_linked_pod(NS, UID, SVC, pod, persist_seconds=seconds)


def permanent(pod: int) -> Step:
    return lambda executor: executor.set_linked_pod(NS, UID, SVC, pod)


def removed(seconds: int = 0) -> Step:
    return lambda executor: executor.remove_linked_pod(NS, UID, SVC, persist_seconds=seconds)


@pytest.mark.parametrize(
    ("steps", "load", "members"),
    [
        ([permanent(1)], {"1": "1"}, []),
        ([permanent(1), permanent(1)], {"1": "1"}, []),
        ([permanent(1), permanent(2)], {"2": "1"}, []),
        ([temporary(1)], {"1": "1"}, [1]),
        ([temporary(1), temporary(1, 90)], {"1": "1"}, [1]),
        ([temporary(1), temporary(2)], {"2": "1"}, [2]),
        ([temporary(1), permanent(1)], {"1": "1"}, []),
        ([permanent(1), temporary(1)], {"1": "1"}, [1]),
        ([temporary(1), permanent(0)], {"0": "1"}, []),
        ([permanent(0), temporary(1)], {"1": "1"}, [1]),
        ([permanent(1), removed()], {}, []),
        ([temporary(1), removed()], {}, []),
        ([permanent(1), removed(60)], {}, []),
        ([temporary(1), removed(60)], {}, []),
        ([permanent(1), removed(60), removed(60)], {}, []),
        ([permanent(1), removed(60), removed()], {}, []),
        ([permanent(1), removed(60), permanent(1)], {"1": "1"}, []),
        ([permanent(1), removed(60), permanent(2)], {"2": "1"}, []),
        ([temporary(1), removed(60), temporary(1)], {"1": "1"}, [1]),
        ([removed()], {}, []),
    ],
)
async def test_load_after_steps(
    executor: Awaited, wire: Wire, steps: list[Step], load: dict[str, str], members: list[int]
) -> None:
    for step in steps:
        await step(executor)
    assert wire.loads() == load
    assert wire.redis.zrange(EXPIRY, 0, -1) == [member(pod) for pod in members]


@pytest.mark.parametrize("seconds", [-1, 60])
async def test_every_way_to_link_counts_once(executor: Awaited, wire: Wire, seconds: int) -> None:
    await executor.set_service_state(NS, SVC, 4, "Ready")
    assert await executor.try_set_linked_pod(NS, UID, SVC, 4, persist_seconds=seconds) == (True, 4)
    assert await executor.try_set_linked_pod(NS, UID, SVC, 4, persist_seconds=seconds) == (True, 4)
    assert wire.loads() == {"4": "1"}
    assert await executor.set_linked_pod_if_absent(NS, UID, SVC, 5, persist_seconds=seconds) == 4
    assert await executor.compute_linked_pod_if_absent(NS, UID, SVC, persist_seconds=seconds) == 4
    assert wire.loads() == {"4": "1"}
    assert await executor.set_linked_pod_if_absent(NS, "second", SVC, 4, persist_seconds=seconds) == 4
    assert await executor.compute_linked_pod_if_absent(NS, "third", SVC, persist_seconds=seconds) == 4
    assert wire.loads() == {"4": "3"}
    assert wire.redis.zcard(EXPIRY) == (0 if seconds == -1 else 3)


async def test_refused_try_set_changes_no_load(executor: Awaited, wire: Wire) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 1)
    await executor.try_set_linked_pod(NS, UID, SVC, 2, persist_seconds=60)
    assert wire.loads() == {"1": "1"}
    assert wire.redis.exists(EXPIRY) == 0


@pytest.mark.parametrize("seconds", [-1, 60])
async def test_try_set_moves_the_load(executor: Awaited, wire: Wire, seconds: int) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 1, persist_seconds=seconds)
    await executor.try_set_linked_pod(NS, UID, SVC, 2, expected=1)
    assert wire.loads() == {"2": "1"}
    assert wire.redis.exists(EXPIRY) == 0


@pytest.mark.parametrize("seconds", [-1, 60])
async def test_compare_and_delete_gives_the_load_back_once(executor: Awaited, wire: Wire, seconds: int) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 1, persist_seconds=seconds)
    await executor.set_linked_pod(NS, "another", SVC, 1)
    await executor.remove_linked_pod_with_id(NS, UID, SVC, 2)
    assert wire.loads() == {"1": "2"}
    await executor.remove_linked_pod_with_id(NS, UID, SVC, 1)
    await executor.remove_linked_pod_with_id(NS, UID, SVC, 1)
    assert wire.loads() == {"1": "1"}
    assert wire.redis.exists(EXPIRY) == 0


@pytest.mark.parametrize(
    ("way", "load"),
    [
        ("remove", {"1": "1"}),
        ("remove_with_id", {"1": "1"}),
        ("set", {"1": "1", "2": "1"}),
        ("try_set", {"1": "1", "2": "1"}),
        ("if_absent", {"1": "1"}),
        ("compute", {"1": "1"}),
    ],
)
async def test_a_link_in_its_reconnect_window_has_no_load_to_give_back(
    executor: Awaited, wire: Wire, way: str, load: dict[str, str]
) -> None:
    await executor.set_linked_pod(NS, "another", SVC, 1)
    await executor.set_linked_pod(NS, UID, SVC, 1)
    await executor.remove_linked_pod(NS, UID, SVC, persist_seconds=30)
    assert wire.loads() == {"1": "1"}
    if way == "remove":
        assert await executor.remove_linked_pod(NS, UID, SVC)
    elif way == "remove_with_id":
        assert await executor.remove_linked_pod_with_id(NS, UID, SVC, 1)
    elif way == "compute":
        assert await executor.compute_linked_pod_if_absent(NS, UID, SVC) == 1
    else:
        await WAYS_TO_LINK[way](executor, 2, -1)
    assert wire.loads() == load


async def test_member_ends_when_the_string_does(executor: Awaited, wire: Wire) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 1, persist_seconds=60)
    assert wire.redis.zscore(EXPIRY, member(1)) == wire.redis.execute_command("PEXPIRETIME", LINK)


async def test_load_of_an_expired_link_goes_without_anybody_touching_the_link(
    aexecutor: StatefulExecutor, raw: redis.Redis
) -> None:
    raw.hset(STATE, mapping={"0": "Ready", "1": "Ready"})
    await aexecutor.set_linked_pod(NS, "stays", SVC, 1)
    await aexecutor.set_linked_pod(NS, UID, SVC, 0, persist_seconds=1)
    await aexecutor.set_linked_pod(NS, "also", SVC, 0, persist_seconds=1)
    assert await aexecutor.get_service(NS, SVC) == Service({0: "Ready", 1: "Ready"}, {0: 2, 1: 1})

    async def settled() -> bool:
        return await aexecutor.get_service(NS, SVC) == Service({0: "Ready", 1: "Ready"}, {0: 0, 1: 1})

    await until_async(settled, 5, "the loads of both expired links to be gone")
    assert raw.exists(EXPIRY) == 0


@pytest.mark.parametrize("how", ["compute", "reserve"])
async def test_whoever_picks_settles_first(aexecutor: StatefulExecutor, raw: redis.Redis, how: str) -> None:
    raw.hset(STATE, mapping={"0": "Ready", "1": "Ready"})
    for uid in ("a", "b", "c"):
        await aexecutor.set_linked_pod(NS, uid, SVC, 0, persist_seconds=1)
    for uid in ("d", "e"):
        await aexecutor.set_linked_pod(NS, uid, SVC, 1)
    await until_async(lambda: not raw.exists("sf:{games:lk:c}lobby"), 5, "the last temporary link to expire")
    if how == "compute":
        assert await aexecutor.compute_linked_pod_if_absent(NS, UID, SVC) == 0
    else:
        assert await aexecutor.run(operations.reserve_service_pod(NS, SVC)) == 0
        await aexecutor.run(operations.release_service_pod(NS, SVC, 0))
    assert raw.exists(EXPIRY) == 0


@pytest.mark.parametrize("how", ["compute", "reserve"])
async def test_picking_leaves_no_load_of_zero(executor: Awaited, raw: redis.Redis, how: str) -> None:
    raw.hset(STATE, "1", "Ready")
    raw.hset(LOAD, "0", "2")
    raw.zadd(EXPIRY, {f"0 sf:{{games:lk:u{number}}}lobby": 1 for number in range(2)})
    if how == "compute":
        await executor.compute_linked_pod_if_absent(NS, UID, SVC)
        assert raw.hgetall(LOAD) == {"1": "1"}
    else:
        await executor.run(operations.reserve_service_pod(NS, SVC))
        assert raw.hgetall(LOAD) == {"1": "1"}
        await executor.run(operations.release_service_pod(NS, SVC, 1))


@pytest.mark.parametrize("pod", [0, 1])
@pytest.mark.parametrize("seconds", [-1, 60])
@pytest.mark.parametrize("way", WAYS_TO_LINK)
async def test_new_link_before_the_expired_one_was_settled(
    executor: Awaited, raw: redis.Redis, wire: Wire, way: str, seconds: int, pod: int
) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 0, persist_seconds=60)
    raw.delete(LINK, LINKS)
    raw.zadd(EXPIRY, {member(0): 1001})
    # So many links ended before this one that it is not yet settled when a pod is picked.
    raw.zadd(EXPIRY, {f"9 sf:{{games:lk:u{number}}}lobby": number for number in range(1, 1001)})
    raw.hset(LOAD, "9", "1000")
    await WAYS_TO_LINK[way](executor, pod, seconds)
    for _ in range(2):
        settled = await executor.get_service(NS, SVC)
    assert {pod: 1} == {p: n for p, n in settled.loads.items() if n}


@pytest.mark.parametrize("way", sorted(WAYS_TO_LINK.keys() - {"compute"}))
async def test_new_link_takes_over_what_another_client_removed(executor: Awaited, raw: redis.Redis, way: str) -> None:
    await relink_what_another_client_removed(executor, raw, way)


@pytest.mark.only_on(*ONE_PRIMARY, reason="in a Cluster the pick has reserved a unit of its own before")
async def test_pick_takes_over_what_another_client_removed(executor: Awaited, raw: redis.Redis) -> None:
    await relink_what_another_client_removed(executor, raw, "compute")


@pytest.mark.parametrize("way", ["set", "try_set"])
async def test_move_takes_over_what_another_client_removed(executor: Awaited, raw: redis.Redis, way: str) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 1, persist_seconds=60)
    raw.delete(LINK, LINKS)  # by a client that keeps no load
    await executor.set_linked_pod(NS, UID, SVC, 2)
    if way == "set":
        await executor.set_linked_pod(NS, UID, SVC, 1)
    else:
        await executor.try_set_linked_pod(NS, UID, SVC, 1, expected=2)
    assert raw.hgetall(LOAD) == {"1": "1"}
    assert raw.exists(EXPIRY) == 0


async def relink_what_another_client_removed(executor: Awaited, raw: redis.Redis, way: str) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 1, persist_seconds=60)
    raw.delete(LINK, LINKS)  # by a client that keeps no load
    await WAYS_TO_LINK[way](executor, 1, -1)
    assert raw.hgetall(LOAD) == {"1": "1"}
    assert raw.exists(EXPIRY) == 0


async def test_mass_expiry_is_settled_in_bounded_steps(executor: Awaited, raw: redis.Redis) -> None:
    raw.hset(LOAD, "0", "1500")
    raw.zadd(EXPIRY, {f"0 sf:{{games:lk:u{number}}}lobby": 1 for number in range(1500)})
    assert (await executor.get_service(NS, SVC)).loads == {0: 500}
    assert (await executor.get_service(NS, SVC)).loads == {}
    assert raw.keys() == []


@pytest.mark.usefixtures("leaves_orphans")
async def test_load_never_falls_below_zero(executor: Awaited, wire: Wire) -> None:
    # Another client linked it without counting; taking it over and removing it must not leave a negative load.
    wire("statefulSetLink", [LINK, "sf:{games:lk:player-42}"], SVC, 1, -1)
    await executor.remove_linked_pod(NS, UID, SVC)
    assert wire.loads() == {}


async def test_service_lists_pods_without_load_and_load_without_pods(executor: Awaited) -> None:
    await executor.set_service_state(NS, SVC, 0, "Ready")
    await executor.set_linked_pod(NS, UID, SVC, 9)
    assert await executor.get_service(NS, SVC) == Service(states={0: "Ready"}, loads={0: 0, 9: 1})
