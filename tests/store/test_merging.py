"""Calls of many tasks at once travel together, and no task notices."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio as asyncio_redis

from podlink import RedisUnavailable, ScriptError, StatefulExecutor
from podlink.store import operations
from podlink.store.aio.queue import FEW, MAX_IN_FLIGHT
from podlink.store.batching.merging import BATCH_SIZE, merge
from podlink.store.operations import Operation, scripts
from podlink.store.operations.base import command
from podlink.store.operations.links import read_link
from sandbox.redis_cluster import ClusterSet
from store.harness import LOAD, NS, ONE_PRIMARY, ONE_SERVER, SVC, UID, Topology, Wire

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from sandbox.redis_servers import RedisServer


def link(number: int, pod: int = 1) -> Operation[int | None]:
    return operations.set_linked_pod(NS, f"u{number}", SVC, pod)


@pytest.mark.only_on(*ONE_PRIMARY, reason="each server of a Cluster counts its own calls")
async def test_calls_at_once_are_few_for_the_server(aexecutor: StatefulExecutor, wire: Wire) -> None:
    wire.redis.config_resetstat()
    told = await asyncio.gather(*(aexecutor.set_linked_pod(NS, f"u{n}", SVC, n % 3) for n in range(500)))
    assert told == [None] * 500
    # The first alone, the rest by 40 at most, and each form of the script once more when the server did not know it.
    assert wire.script_calls() <= 20
    assert wire.redis.hgetall(LOAD) == {"0": "167", "1": "167", "2": "166"}
    assert wire.redis.get("sf:{games:lk:u499}lobby") == "1"


@pytest.mark.only_on(*ONE_PRIMARY, reason="each server of a Cluster counts its own calls")
async def test_calls_at_once_keep_the_server_and_the_callers_busy(server: Topology, wire: Wire) -> None:
    async with StatefulExecutor.from_url(server.url) as executor:
        await asyncio.gather(*(executor.run(link(n)) for n in range(40)))
    async with StatefulExecutor.from_url(server.url) as executor:
        with wire.redis.monitor() as monitor:
            # They wait for the connection together, and leave in two halves: the server works on one of them at a time.
            await asyncio.gather(*(executor.run(link(n)) for n in range(40)))
            sizes: list[int] = []
            while sum(sizes) < 40:
                seen = monitor.next_command()
                if seen["client_type"] != "lua" and seen["command"].startswith("EVAL"):
                    sizes.append(len(re.findall(r"\bu\d+\b", seen["command"])))
    assert sizes == [20, 20]


@pytest.mark.only_on(*ONE_PRIMARY, reason="calls to a Cluster are merged by server, not by script")
async def test_a_call_alone_is_the_call_of_its_script(aexecutor: StatefulExecutor, wire: Wire) -> None:
    for number in range(3):
        await aexecutor.set_linked_pod(NS, f"u{number}", SVC, 1)
    assert wire.redis.script_exists(scripts.SET_LINK.sha1, scripts.BATCH.sha1) == [True, False]


async def test_each_task_has_its_own_result_of_its_own_kind(aexecutor: StatefulExecutor) -> None:
    await aexecutor.set_service_state(NS, SVC, 4, "Ready")
    await aexecutor.set_linked_pod(NS, "known", SVC, 4)
    calls: list[tuple[Any, Any]] = []
    for n in range(40):
        calls += [
            (aexecutor.get_linked_pod(NS, "known", SVC), 4),
            (aexecutor.try_set_linked_pod(NS, "known", SVC, 9), (False, 4)),
            (aexecutor.compute_linked_pod_if_absent(NS, f"new-{n}", SVC), 4),
            (aexecutor.get_linked_services(NS, "known"), {SVC: 4}),
            (aexecutor.remove_linked_pod(NS, f"nobody-{n}", SVC), False),
            (aexecutor.get_linked_pod_if_persist(NS, "known", SVC), 4),
            (aexecutor.get_service_state(NS, SVC), {4: "Ready"}),
        ]
    assert await asyncio.gather(*(call for call, _ in calls)) == [expected for _, expected in calls]


async def test_an_error_is_the_callers_alone(aexecutor: StatefulExecutor, raw: redis.Redis) -> None:
    raw.rpush("sf:{games:lk:u7}lobby", "no string")
    told = await asyncio.gather(*(aexecutor.run(link(n)) for n in range(100)), return_exceptions=True)
    error = told.pop(7)
    assert isinstance(error, ScriptError)
    assert error.script == "statefulSetLink"
    assert "sf:{games:lk:u7}lobby" in str(error)
    assert told == [None] * 99
    raw.delete("sf:{games:lk:u7}lobby")


async def test_order_of_a_tasks_calls_is_kept(aexecutor: StatefulExecutor) -> None:
    async def user(number: int) -> list[int | None]:
        moves = [await aexecutor.set_linked_pod(NS, f"u{number}", SVC, pod) for pod in range(10)]
        return [*moves, await aexecutor.get_linked_pod(NS, f"u{number}", SVC)]

    told = await asyncio.gather(*(user(number) for number in range(100)))
    assert told == [[None, *range(9), 9]] * 100


async def test_cancelled_tasks_take_no_other_along(
    aexecutor: StatefulExecutor, raw: redis.Redis, server: Topology
) -> None:
    for _ in range(20):
        tasks = [asyncio.create_task(aexecutor.run(link(n))) for n in range(200)]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks[::3])
        assert {task.result() for n, task in enumerate(tasks) if n % 3} <= {None, 1}
    if isinstance(server, ClusterSet):
        return  # there, calls that were made are seen through, so that loads add up
    # Only the first had left when they were cancelled.
    assert raw.exists(*(f"sf:{{games:lk:u{n}}}lobby" for n in range(3, 200, 3))) == 0
    # No answer went to another call.
    assert await asyncio.gather(*(aexecutor.get_linked_pod(NS, f"u{n}", SVC) for n in (1, 2, 4))) == [1, 1, 1]


async def test_scripts_forgotten_under_load_are_invisible(aexecutor: StatefulExecutor, raw: redis.Redis) -> None:
    for pod in range(5):
        raw.script_flush()
        told = await asyncio.gather(*(aexecutor.run(link(n, pod)) for n in range(100)))
        assert told == [pod - 1 if pod else None] * 100


async def test_a_lost_server_fails_each_call_by_itself(own_server: Callable[..., RedisServer]) -> None:
    server = own_server()
    async with StatefulExecutor.from_url(server.url, timeout_seconds=2) as executor:
        await executor.run(link(0))
        server.kill()
        told = await asyncio.gather(*(executor.run(link(n)) for n in range(300)), return_exceptions=True)
        assert {type(error) for error in told} == {RedisUnavailable}
        server.start()
        assert await asyncio.gather(*(executor.run(link(n)) for n in range(300))) == [None] * 300


async def test_closing_waits_for_calls_under_way(server: Topology, raw: redis.Redis) -> None:
    executor = StatefulExecutor.from_url(server.url)
    tasks = [asyncio.create_task(executor.run(link(n))) for n in range(100)]
    await asyncio.sleep(0)
    await executor.aclose()
    assert await asyncio.gather(*tasks) == [None] * 100


@pytest.mark.only_on(*ONE_PRIMARY, reason="in a Cluster the steps of a call are observed")
async def test_every_call_is_observed_under_its_own_name(server: Topology, raw: redis.Redis) -> None:
    seen: list[tuple[str, str]] = []
    async with StatefulExecutor.from_url(server.url, on_call=lambda name, _, end: seen.append((name, end))) as executor:
        await asyncio.gather(*(executor.run(link(n)) for n in range(50)), executor.get_linked_pod(NS, UID, SVC))
    assert sorted(seen) == [("get_linked_pod", "ok")] + [("set_linked_pod", "ok")] * 50


async def test_what_an_observer_raises_reaches_every_caller(server: Topology, raw: redis.Redis) -> None:
    def observe(*_: object) -> None:
        raise ZeroDivisionError("observer")

    async with StatefulExecutor.from_url(server.url, on_call=observe) as executor:
        told = await asyncio.gather(*(executor.run(link(n)) for n in range(50)), return_exceptions=True)
    assert {type(error) for error in told} == {ZeroDivisionError}


async def test_what_an_observer_raises_is_of_the_call_that_it_was_told_of(server: Topology, raw: redis.Redis) -> None:
    def observe(name: str, *_: object) -> None:
        if name == "get_linked_pod":
            raise ZeroDivisionError("observer")

    async with StatefulExecutor.from_url(server.url, on_call=observe) as executor:
        links = (executor.run(link(n)) for n in range(20))
        *told, error = await asyncio.gather(*links, executor.get_linked_pod(NS, UID, SVC), return_exceptions=True)
    assert told == [None] * 20
    assert type(error) is ZeroDivisionError


@pytest.mark.usefixtures("leaves_orphans")  # in a Cluster, those who hear of the fault book no load
@pytest.mark.parametrize(("raises", "reaches"), [(LookupError, ScriptError), (ZeroDivisionError, ZeroDivisionError)])
async def test_a_reply_that_cannot_be_read_keeps_nobody_waiting(
    aexecutor: StatefulExecutor, raises: type[Exception], reaches: type[Exception]
) -> None:
    def parse(_: object) -> None:
        raise raises("what is this?")

    calls = [aexecutor.run(link(n)) for n in range(20)]
    unreadable = aexecutor.run(command("unreadable", "GET", parse, keys=("sf:{games:lk:u0}lobby",)))
    *told, error = await asyncio.gather(*calls, unreadable, return_exceptions=True)
    assert type(error) is reaches
    # Those who travelled with it hear of a fault that is nobody's, and nobody waits.
    assert {type(each) for each in told} <= {type(None), reaches}
    assert await aexecutor.run(link(0)) in {None, 1}


async def test_a_call_that_was_given_up_does_not_overtake_what_follows(server: Topology, raw: redis.Redis) -> None:
    async with StatefulExecutor.from_url(server.url) as executor:
        await asyncio.gather(*(executor.run(link(n)) for n in range(20)))  # the server knows the batch now
        await executor.set_linked_pod(NS, UID, SVC, 3)
        given_up = asyncio.create_task(executor.remove_linked_pod(NS, UID, SVC))
        await asyncio.sleep(0)  # it leaves, with a script that the server does not know
        given_up.cancel()
        others = [asyncio.create_task(executor.run(link(n))) for n in range(20)]
        await executor.set_linked_pod(NS, UID, SVC, 7)
        await asyncio.gather(*others)
    async with StatefulExecutor.from_url(server.url) as executor:
        assert await executor.get_linked_pod(NS, UID, SVC) == 7


def test_batches_hold_so_many_calls_at_most() -> None:
    read = operations.get_linked_pod(NS, UID, SVC)
    many = [link(n) for n in range(BATCH_SIZE * 2 + 1)]
    merged = list(merge([*many, read, read, link(0), operations.get_linked_services(NS, UID)]))
    assert [count for _, count in merged] == [BATCH_SIZE, BATCH_SIZE, 5]
    assert {operation.target for operation, _ in merged} == {"batch"}


@pytest.mark.parametrize(
    ("operation", "fit"),
    [
        (operations.set_linked_pod(NS, UID, SVC, 1), 40),
        (operations.set_linked_pod(NS, UID, SVC, 1, persist_seconds=60), 13),
        (operations.try_set_linked_pod(NS, UID, SVC, 1), 40),
        (operations.try_set_linked_pod(NS, UID, SVC, 1, persist_seconds=60), 13),
        (operations.set_linked_pod_if_absent(NS, UID, SVC, 1), 40),
        (operations.set_linked_pod_if_absent(NS, UID, SVC, 1, persist_seconds=60), 13),
        (operations.compute_linked_pod_if_absent(NS, UID, SVC), 8),
        (operations.compute_linked_pod_if_absent(NS, UID, SVC, persist_seconds=60), 8),
        (operations.remove_linked_pod(NS, UID, SVC), 40),
        (operations.remove_linked_pod(NS, UID, SVC, persist_seconds=60), 13),
        (operations.remove_linked_pod_with_id(NS, UID, SVC, 1), 40),
        (operations.remove_linked_pod_with_id(NS, UID, SVC, 1, persist_seconds=60), 13),
        (operations.get_linked_pod(NS, UID, SVC), 40),
        (read_link(NS, UID, SVC), 40),
        (operations.get_linked_pod_if_persist(NS, UID, SVC), 40),
        (operations.get_linked_services(NS, UID), 13),
        (operations.set_service_state(NS, SVC, 1, "Ready"), 40),
        (operations.set_workload_state(NS, SVC, "Available"), 40),
        (operations.get_service(NS, SVC), 8),
        (operations.reserve_service_pod(NS, SVC), 8),
        (operations.release_service_pod(NS, SVC, 1), 8),
    ],
    ids=lambda value: value.name if isinstance(value, Operation) else str(value),
)
def test_a_batch_holds_fewer_of_what_keeps_the_server_longer(operation: Operation[Any], fit: int) -> None:
    assert [count for _, count in merge([operation] * (2 * fit + 1))] == [fit, fit, 1]


def test_operations_of_several_kinds_share_the_room_of_a_batch() -> None:
    computes = [operations.compute_linked_pod_if_absent(NS, f"u{n}", SVC) for n in range(7)]
    assert [count for _, count in merge([*computes, *[link(n) for n in range(7)]])] == [12, 2]


def test_reads_alone_travel_as_one_command() -> None:
    merged = list(merge([operations.get_linked_pod(NS, f"u{n}", SVC) for n in range(BATCH_SIZE + 1)]))
    assert [(operation.target, count) for operation, count in merged] == [("MGET", BATCH_SIZE), ("GET", 1)]


def test_what_is_neither_link_nor_read_travels_alone() -> None:
    merged = list(merge([link(0), link(1), operations.ping(), link(2)]))
    assert [(operation.target, count) for operation, count in merged] == [
        ("batch", 2),
        ("PING", 1),
        ("statefulSetLink", 1),
    ]


async def test_a_call_cancelled_before_there_was_a_connection_is_never_sent(
    own_server: Callable[..., RedisServer],
) -> None:
    server = own_server()
    async with StatefulExecutor.from_url(server.url) as executor:
        server.freeze()  # it accepts the connection, and does not get as far as to greet
        tasks = [asyncio.create_task(executor.run(link(n))) for n in range(30)]
        for _ in range(10):  # turns of the loop, in which both batches set out to connect
            await asyncio.sleep(0)
        tasks[20].cancel()
        await asyncio.wait(tasks[20:21])
        server.thaw()
        assert await asyncio.gather(*tasks[:20], *tasks[21:]) == [None] * 29
        assert await executor.get_linked_pod(NS, "u20", SVC) is None


async def test_the_executor_outlives_a_cancellation_of_every_task(aexecutor: StatefulExecutor) -> None:
    tasks = [asyncio.create_task(aexecutor.run(link(n))) for n in range(100)]
    for _ in range(3):
        await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.wait(tasks)
    assert set(await asyncio.gather(*(aexecutor.run(link(n, 2)) for n in range(3)))) <= {None, 1}
    assert await aexecutor.get_linked_pod(NS, "u0", SVC) == 2


async def test_closing_ends_while_tasks_go_on_calling(server: Topology, raw: redis.Redis) -> None:
    executor = StatefulExecutor.from_url(server.url)

    async def call_for_ever(number: int) -> None:
        while True:
            await executor.run(link(number))

    tasks = [asyncio.create_task(call_for_ever(n)) for n in range(50)]
    for _ in range(10):
        await asyncio.sleep(0)
    await asyncio.wait_for(executor.aclose(), 10)
    told = await asyncio.gather(*tasks, return_exceptions=True)
    # Sent before or after the end, they end; and nothing connects again.
    assert {type(error) for error in told} == {RedisUnavailable}
    with pytest.raises(RedisUnavailable, match="the executor was closed") as error:
        await executor.run(link(0))
    assert error.value.maybe_applied is False
    await executor.aclose()


async def test_closing_waits_for_a_call_alone(own_server: Callable[..., RedisServer]) -> None:
    server = own_server()
    executor = StatefulExecutor.from_url(server.url)
    await executor.run(link(0))
    server.freeze()
    call = asyncio.create_task(executor.run(link(1)))
    for _ in range(5):
        await asyncio.sleep(0)
    closing = asyncio.create_task(executor.aclose())
    for _ in range(5):
        await asyncio.sleep(0)
    server.thaw()
    await closing
    assert await call is None


async def test_a_demoted_primary_is_left(own_server: Callable[..., RedisServer]) -> None:
    server, primary = own_server(), own_server()
    async with StatefulExecutor.from_url(server.url) as executor:
        await asyncio.gather(*(executor.run(link(n)) for n in range(100)))
        with server.client() as raw:
            raw.replicaof("127.0.0.1", primary.port)
            before = {client["id"] for client in raw.client_list(_type="normal")} - {str(raw.client_id())}
            told = await asyncio.gather(*(executor.run(link(n)) for n in range(100)), return_exceptions=True)
            assert {(type(error), error.maybe_applied) for error in told} == {(RedisUnavailable, False)}
            after = {client["id"] for client in raw.client_list(_type="normal")}
    assert before
    assert not before & after


async def test_keys_out_of_bounds_are_their_callers_alone(own_server: Callable[..., RedisServer]) -> None:
    server = own_server()
    with server.client() as raw:
        raw.acl_setuser("gate", enabled=True, passwords=["+pass"], keys=[f"sf:{{{NS}:*"], commands=["+@all"])
    async with StatefulExecutor.from_url(server.url.replace("redis://", "redis://gate:pass@")) as executor:
        other = operations.set_linked_pod("other", UID, SVC, 1)
        told = await asyncio.gather(
            *(executor.run(link(n)) for n in range(30)),
            executor.run(other),
            *(executor.run(link(n)) for n in range(30, 60)),
            return_exceptions=True,
        )
        error = told.pop(30)
        assert isinstance(error, ScriptError)
        assert "NOPERM" in str(error) or "permission" in str(error)
        assert told == [None] * 60


@pytest.mark.only_on(*ONE_SERVER, reason="the client passed in is one of a plain server")
async def test_a_value_that_is_no_text_is_its_callers_alone(server: Topology, raw: redis.Redis) -> None:
    raw.set("sf:{games:lk:u7}lobby", b"\xff\xfe")
    client = asyncio_redis.Redis(port=server.port, decode_responses=True)
    async with StatefulExecutor(client) as executor:
        told = await asyncio.gather(*(executor.run(link(n)) for n in range(60)), return_exceptions=True)
    assert isinstance(told.pop(7), ScriptError)
    assert told == [None] * 59
    await client.aclose()
    raw.flushall()


async def test_a_server_that_does_not_answer_is_sent_so_many_batches_at_most(
    own_server: Callable[..., RedisServer],
) -> None:
    server = own_server()
    async with StatefulExecutor.from_url(server.url, timeout_seconds=1) as executor:
        await asyncio.gather(*(executor.run(link(n)) for n in range(20)))
        server.freeze()
        calls = [asyncio.create_task(executor.run(link(0)))]
        for _ in range(2 * MAX_IN_FLIGHT):
            # The fewest that leave beside others; the loop takes a turn to start them, and one to send them.
            calls += [asyncio.create_task(executor.run(link(n))) for n in range(FEW)]
            for _ in range(3):
                await asyncio.sleep(0)
        told: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
        server.thaw()
    assert [error.maybe_applied for error in told] == [n <= (MAX_IN_FLIGHT - 1) * FEW for n in range(len(told))]


async def test_a_call_given_up_while_it_waited_is_observed(own_server: Callable[..., RedisServer]) -> None:
    server = own_server()
    seen: list[tuple[str, str]] = []
    async with StatefulExecutor.from_url(
        server.url, timeout_seconds=0.5, on_call=lambda name, _, outcome: seen.append((name, outcome))
    ) as executor:
        await executor.run(link(0))
        server.freeze()
        await asyncio.gather(*(executor.run(link(n)) for n in range(5)), return_exceptions=True)
        server.thaw()
    assert seen == [("set_linked_pod", "ok")] + [("set_linked_pod", "unavailable")] * 5
