"""Writes that a replica must have before the caller goes on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import NoPermissionError

from podlink import NotReplicated, PartialFailure, ScriptError, StatefulExecutor, sync
from podlink.store import operations
from podlink.store.batching.exchange import SendMode, exchange
from sandbox.processes import until, until_async
from store.harness import LINK, NS, SVC, UID, Awaited

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sandbox.redis_servers import RedisServer


@pytest.fixture
def pair(own_server: Callable[..., RedisServer]) -> tuple[RedisServer, RedisServer]:
    """A primary and its replica, in sync."""
    primary, replica = own_server(), own_server()
    with primary.client() as raw, replica.client() as follower:
        raw.config_set("repl-diskless-sync-delay", 0)
        follower.replicaof("127.0.0.1", primary.port)
        # For up to a second after it is in sync, a replica confirms nothing.
        until(
            lambda: raw.info("replication")["slave0"]["state"] == "online",
            20,
            "the replica to be in sync",
            retry_on=(KeyError,),
        )
        until(lambda: raw.set("probe", "1") and raw.wait(1, 100), 20, "the replica to confirm a write")
        raw.delete("probe")
    return primary, replica


@pytest.fixture(params=["async", "blocking"])
async def replicated(request: pytest.FixtureRequest, pair: tuple[RedisServer, RedisServer]) -> AsyncIterator[Awaited]:
    settings: dict[str, Any] = {"durability": "replicated", "timeout_seconds": 8}
    if request.param == "async":
        async with StatefulExecutor.from_url(pair[0].url, **settings) as asynchronous:
            yield Awaited(asynchronous)
    else:
        with sync.StatefulExecutor.from_url(pair[0].url, **settings) as blocking:
            yield Awaited(blocking)


async def test_what_was_confirmed_is_on_the_replica(replicated: Awaited, pair: tuple[RedisServer, RedisServer]) -> None:
    with pair[1].client() as replica:
        assert await replicated.set_linked_pod(NS, UID, SVC, 1) is None
        assert replica.get(LINK) == "1"
        assert await replicated.set_linked_pods(NS, {f"u{n}": n for n in range(100)}, SVC) == {
            f"u{n}": None for n in range(100)
        }
        assert replica.get(f"sf:{{{NS}:lk:u99}}{SVC}") == "99"
        assert await replicated.remove_linked_pod(NS, UID, SVC) is True
        assert replica.get(LINK) is None


async def test_what_no_replica_confirms_is_told(replicated: Awaited, pair: tuple[RedisServer, RedisServer]) -> None:
    primary, replica = pair
    await replicated.set_linked_pod(NS, UID, SVC, 1)
    replica.freeze()
    with pytest.raises(NotReplicated, match="no replica confirmed it in time") as error:
        await replicated.set_linked_pod(NS, UID, SVC, 2)
    assert error.value.maybe_applied is True
    with primary.client() as raw:
        assert raw.get(LINK) == "2"
    # Reads need no replica.
    assert await replicated.get_linked_pod(NS, UID, SVC) == 2
    with pytest.raises(NotReplicated):
        await replicated.set_linked_pods(NS, {"u1": 1, "u2": 2}, SVC)
    replica.thaw()
    assert await replicated.set_linked_pod(NS, UID, SVC, 3) == 2


async def test_calls_that_failed_anyway_keep_their_own_error(
    replicated: Awaited, pair: tuple[RedisServer, RedisServer]
) -> None:
    with pair[0].client() as raw:
        raw.rpush(LINK, "no string")
    with pytest.raises(PartialFailure) as error:
        await replicated.set_linked_pods(NS, {UID: 1, "u1": 1}, SVC)
    assert list(error.value.errors) == [UID]
    assert error.value.results == {"u1": None}


async def test_tasks_share_one_confirmation(pair: tuple[RedisServer, RedisServer]) -> None:
    primary, _ = pair
    async with StatefulExecutor.from_url(primary.url, durability="replicated") as executor:
        await asyncio.gather(*(executor.set_linked_pod(NS, f"u{n}", SVC, n) for n in range(200)))
        with primary.client() as raw:
            raw.config_resetstat()
            told = await asyncio.gather(*(executor.set_linked_pod(NS, f"u{n}", SVC, n) for n in range(200)))
            assert told == list(range(200))
            assert raw.info("commandstats")["cmdstat_wait"]["calls"] <= 10


READS: list[Callable[[StatefulExecutor], Awaitable[object]]] = [
    lambda executor: executor.get_linked_pod(NS, UID, SVC),
    lambda executor: executor.get_linked_pods(NS, [UID], SVC),
    lambda executor: executor.get_linked_pod_if_persist(NS, UID, SVC),
    lambda executor: executor.get_linked_services(NS, UID),
    lambda executor: executor.get_service(NS, SVC),
    lambda executor: executor.get_service_state(NS, SVC),
    lambda executor: executor.get_workload_state(NS, SVC),
]


@pytest.mark.parametrize("cache", [False, True], ids=["uncached", "cached"])
async def test_reads_wait_for_no_replica(pair: tuple[RedisServer, RedisServer], cache: bool) -> None:
    primary, replica = pair
    async with StatefulExecutor.from_url(
        primary.url, durability="replicated", cache=cache, timeout_seconds=20
    ) as executor:
        replica.freeze()
        write = asyncio.create_task(executor.set_linked_pod(NS, UID, SVC, 1))
        with primary.client() as raw:
            await until_async(lambda: raw.get(LINK) == "1", 20, "the write to be made")
        await asyncio.gather(*(read(executor) for read in READS))
        assert not write.done()
        replica.thaw()
        assert await write is None


async def test_many_writes_are_told_in_time_that_no_replica_confirms(pair: tuple[RedisServer, RedisServer]) -> None:
    primary, replica = pair
    async with StatefulExecutor.from_url(primary.url, durability="replicated", timeout_seconds=8) as executor:
        await executor.set_linked_pod(NS, UID, SVC, 1)
        replica.freeze()
        calls: list[Awaitable[object]] = []
        for number in range(150):
            calls.append(asyncio.create_task(executor.set_linked_pod(NS, f"u{number}", SVC, 1)))
            if number == 75:
                calls.append(asyncio.create_task(executor.set_linked_pods(NS, dict.fromkeys("abc", 1), SVC)))
            await asyncio.sleep(0)
        told = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error) for error in told] == [NotReplicated] * 151


async def test_more_replicas_than_there_are_never_confirm(pair: tuple[RedisServer, RedisServer]) -> None:
    async with StatefulExecutor.from_url(pair[0].url, durability="replicated", replicas=2) as executor:
        with pytest.raises(NotReplicated, match="fewer than 2 replicas confirmed it in time"):
            await executor.set_linked_pod(NS, UID, SVC, 1)


async def test_why_the_server_refuses_to_wait_is_told(pair: tuple[RedisServer, RedisServer]) -> None:
    primary, _ = pair
    with primary.client() as raw:
        raw.execute_command("ACL", "SETUSER", "hasty", "on", ">pw", "~*", "+@all", "-wait")
    url = primary.url.replace("redis://", "redis://hasty:pw@")
    async with StatefulExecutor.from_url(url, durability="replicated") as executor:
        with pytest.raises(NotReplicated, match="no permissions to run the 'wait' command"):
            await executor.set_linked_pod(NS, UID, SVC, 1)


def test_what_is_sent_again_alone_confirms_nothing_that_went_before() -> None:
    reads = [operations.get_linked_services(NS, UID)] * 15
    merged = SendMode(merged=True, wait=("WAIT", 1, 100))
    steps = exchange([operations.set_linked_pod(NS, UID, SVC, 1), *reads], merged)
    assert [request[0] for request in next(steps)] == ["EVALSHA", "EVALSHA", "WAIT"]
    # No replica has what the first batch wrote. The second batch, of two reads, was refused as a whole.
    again = steps.send([[-1, *[[]] * 13], NoPermissionError("no key of yours"), 0])
    assert [request[0] for request in again] == ["EVALSHA", "EVALSHA"]
    with pytest.raises(StopIteration) as end:
        steps.send([[], NoPermissionError("no key of yours")])
    written, *read = end.value.value
    assert isinstance(written, NotReplicated)
    assert read[:14] == [{}] * 14
    assert isinstance(read[14], ScriptError)


async def test_reads_follow_when_writes_turn_to_another_primary(pair: tuple[RedisServer, RedisServer]) -> None:
    primary, _ = pair
    async with StatefulExecutor.from_url(primary.url, durability="replicated") as executor:
        await executor.set_linked_pod(NS, UID, SVC, 1)
        await executor.get_linked_pod(NS, UID, SVC)
        with primary.client() as raw:
            last = {each["cmd"]: each["id"] for each in raw.client_list(_type="normal")}
            raw.client_kill_filter(_id=last["wait"])
            until(
                lambda: last["wait"] not in {each["id"] for each in raw.client_list()}, 20, "the connection to be gone"
            )

            async def another() -> bool:
                await executor.get_linked_pod(NS, UID, SVC)
                return last["get"] not in {each["id"] for each in raw.client_list()}

            await until_async(another, 20, "reads to come by another connection")


async def test_many_of_nothing_ask_nobody(replicated: Awaited) -> None:
    assert await replicated.set_linked_pods(NS, {}, SVC) == {}
    assert await replicated.get_linked_pods(NS, [], SVC) == {}
