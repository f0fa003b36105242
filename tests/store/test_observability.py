"""What a call leaves in the logs, in the metrics, and the small operations the operator watches Redis with."""

from __future__ import annotations

import contextlib
import logging
import pickle
from typing import TYPE_CHECKING

import pytest

from podlink import InvalidArgument, RedisUnavailable, ScriptError, StatefulExecutor, sync
from podlink.store import operations
from sandbox.processes import until_async
from sandbox.redis_servers import RedisServer
from store.harness import NS, ONE_PRIMARY, SVC, UID, Awaited, Topology

if TYPE_CHECKING:
    import redis


@pytest.mark.only_on(*ONE_PRIMARY, reason="in a Cluster the steps of a call are told, each by itself")
async def test_debug_log_names_what_was_called(
    executor: Awaited, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "podlink.executor"):
        await executor.set_linked_pod(NS, UID, SVC, 1)
        await executor.run_many([operations.get_linked_pod(NS, UID, SVC), operations.get_service_state(NS, SVC)])
    told = [
        (record.getMessage(), *(record.__dict__[name] for name in ("namespace", "service", "uid", "script")))
        for record in caplog.records
        if record.name == "podlink.executor"
    ]
    assert told == [
        ("set_linked_pod: ok", NS, SVC, UID, "statefulSetLink"),
        ("get_linked_pod: ok", NS, SVC, UID, "GET"),
        ("get_service_state: ok", NS, SVC, None, "HGETALL"),
    ]
    assert all(0 < record.__dict__["duration_seconds"] < 5 for record in caplog.records)


async def test_nothing_is_logged_by_default(executor: Awaited, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "podlink.executor"):
        await executor.set_linked_pod(NS, UID, SVC, 1)
    assert caplog.records == []


@pytest.mark.only_on(*ONE_PRIMARY, reason="in a Cluster the steps of a call are told, each by itself")
async def test_observer_is_told_of_every_call(server: Topology, raw: redis.Redis) -> None:
    told: list[tuple[str, float, str]] = []

    def on_call(name: str, seconds: float, outcome: str) -> None:
        told.append((name, seconds, outcome))

    raw.rpush("sf:{games:lk:broken}lobby", "no string")
    async with StatefulExecutor.from_url(server.url, on_call=on_call) as executor:
        await executor.set_linked_pod(NS, UID, SVC, 1)
        await executor.run_many([operations.ping(), operations.get_linked_pod(NS, "broken", SVC)])
    with sync.StatefulExecutor.from_url(server.url, on_call=on_call) as blocking:
        blocking.get_linked_pod(NS, UID, SVC)
    async with StatefulExecutor.from_url("redis://127.0.0.1:1", on_call=on_call) as executor:
        with pytest.raises(RedisUnavailable):
            await executor.get_service(NS, SVC)
    assert [(name, outcome) for name, _, outcome in told] == [
        ("set_linked_pod", "ok"),
        ("ping", "ok"),
        ("get_linked_pod", "script_error"),
        ("get_linked_pod", "ok"),
        ("get_service", "unavailable"),
    ]
    assert all(0 < seconds < 5 for _, seconds, _ in told)


async def test_markers(executor: Awaited, raw: redis.Redis) -> None:
    assert await executor.run(operations.get_marker("canary")) is None
    assert await executor.run(operations.set_marker("canary", "a7")) is None
    assert raw.get("sf:{podlink}canary") == "a7"
    assert await executor.run(operations.get_marker("canary")) == "a7"
    with pytest.raises(InvalidArgument) as error:
        operations.set_marker("a{b", "x")
    assert error.value.argument == "name"
    with pytest.raises(InvalidArgument) as error:
        operations.set_marker("canary", "x\ny")
    assert error.value.argument == "value"


@pytest.mark.only_on(*ONE_PRIMARY, reason="a Cluster has no run id of its own")
async def test_ping_and_run_id(executor: Awaited, raw: redis.Redis) -> None:
    assert await executor.run(operations.ping()) is True
    assert await executor.run(operations.run_id()) == raw.info("server")["run_id"]


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgument("m", argument="uid"),
        RedisUnavailable("m", maybe_applied=True),
        ScriptError("m", script="statefulSetLink", server_message="WRONGTYPE"),
    ],
)
def test_errors_survive_a_trip_to_another_process(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


async def test_health_counts_connections_circuits_and_scripts_that_a_server_had_lost(server: Topology) -> None:
    async with StatefulExecutor.from_url(server.url) as executor:
        assert executor.health() == (0, 0, 0, 0)
        await executor.set_linked_pod(NS, UID, SVC, 1)
        connections, away, reloads, opened = executor.health()
        assert opened == connections >= 1
        assert (away, reloads) == (0, 0)

        for primary in server.primaries():
            primary.ask("SCRIPT", "FLUSH")
        await executor.set_linked_pod(NS, UID, SVC, 2)
        assert executor.health().script_reloads >= 1
    assert (executor.health().connections, executor.health().opened) == (0, opened)


async def test_health_tells_of_a_server_that_cannot_be_reached_until_it_can() -> None:
    server = RedisServer()
    with server:
        async with StatefulExecutor.from_url(server.url) as executor:
            await executor.get_linked_pod(NS, UID, SVC)
            server.kill()
            await until_async(lambda: _is_away(executor), 10, "the server to count as away")
            assert executor.health().connections == 0
            server.restart()
            await until_async(lambda: _answers(executor), 10, "the server to answer", retry_on=(RedisUnavailable,))
            assert executor.health()[:2] == (1, 0)


async def _is_away(executor: StatefulExecutor) -> bool:
    with contextlib.suppress(RedisUnavailable):
        await executor.get_linked_pod(NS, UID, SVC)
    return executor.health().circuits_open == 1


async def _answers(executor: StatefulExecutor) -> bool:
    return await executor.get_linked_pod(NS, UID, SVC) is None
