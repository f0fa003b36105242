"""Cached reads: never older than a message's way, never longer than the link, and gone with the connection."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from podlink import InvalidArgument, RedisUnavailable, StatefulExecutor
from podlink.store import operations
from podlink.store.aio.cache import LinkCache
from sandbox.processes import until, until_async
from store.harness import LINK, NS, ONE_SERVER, SVC, UID, Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import redis

    from sandbox.redis_servers import RedisServer


@pytest.fixture
async def cached(server: RedisServer, raw: redis.Redis) -> AsyncIterator[StatefulExecutor]:
    async with StatefulExecutor.from_url(server.url, cache=True) as executor:
        yield executor


def reads(raw: redis.Redis) -> int:
    """How often the server was asked for links since the last `config_resetstat`."""
    return Wire(raw).calls_of("evalsha")


async def test_a_link_is_read_once(cached: StatefulExecutor, aexecutor: StatefulExecutor, raw: redis.Redis) -> None:
    await aexecutor.set_linked_pod(NS, UID, SVC, 3)
    assert await cached.get_linked_pod(NS, UID, SVC) == 3
    assert await cached.get_linked_pod(NS, "nobody", SVC) is None
    raw.config_resetstat()
    assert [await cached.get_linked_pod(NS, UID, SVC) for _ in range(100)] == [3] * 100
    assert await cached.get_linked_pod(NS, "nobody", SVC) is None
    assert reads(raw) == 0


async def test_what_others_change_is_heard_of(
    cached: StatefulExecutor, aexecutor: StatefulExecutor, raw: redis.Redis
) -> None:
    assert await cached.get_linked_pod(NS, UID, SVC) is None
    for pod in range(50):
        await aexecutor.set_linked_pod(NS, UID, SVC, pod)

        async def seen(pod: int = pod) -> bool:
            return await cached.get_linked_pod(NS, UID, SVC) == pod

        await until_async(seen, 5, f"pod {pod}")
    await aexecutor.remove_linked_pod(NS, UID, SVC)

    async def gone() -> bool:
        return await cached.get_linked_pod(NS, UID, SVC) is None

    await until_async(gone, 5, "the link to be gone")
    await aexecutor.set_linked_pod(NS, UID, SVC, 1)
    await cached.get_linked_pod(NS, UID, SVC)
    raw.flushall()
    await until_async(gone, 5, "the flushed link to be gone")


async def test_a_caller_reads_what_it_has_written(cached: StatefulExecutor) -> None:
    for pod in range(200):
        await cached.set_linked_pod(NS, UID, SVC, pod)
        assert await cached.get_linked_pod(NS, UID, SVC) == pod
    await cached.set_linked_pods(NS, {UID: 7}, SVC)
    assert await cached.get_linked_pod(NS, UID, SVC) == 7
    await cached.remove_linked_pods(NS, [UID], SVC)
    assert await cached.get_linked_pod(NS, UID, SVC) is None


async def test_a_caller_reads_what_it_has_written_before_the_server_tells_of_it(
    server: RedisServer, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where writes have a connection of their own, what the server says of them may be on its way for any time.
    monkeypatch.setattr(LinkCache, "hear", lambda *_: None)
    async with StatefulExecutor.from_url(server.url, cache=True) as executor:

        async def told() -> int | None:
            return await executor.get_linked_pod(NS, UID, SVC)

        assert await told() is None
        await executor.set_linked_pod(NS, UID, SVC, 1)
        assert await told() == 1
        await executor.set_linked_pods(NS, {UID: 2}, SVC)
        assert await told() == 2
        assert await executor.run_many([operations.set_linked_pod(NS, UID, SVC, 3)]) == [2]
        assert await told() == 3
        await executor.remove_linked_pod(NS, UID, SVC)
        assert await told() is None


async def test_a_temporary_link_is_not_told_beyond_its_time(
    cached: StatefulExecutor, aexecutor: StatefulExecutor, wire: Wire
) -> None:
    await aexecutor.set_linked_pod(NS, UID, SVC, 3, persist_seconds=1)
    # Without the server's word: it may say late, or never, that a key has expired.
    left = wire.milliseconds(LINK) + 1
    deadline = time.monotonic() + left / 1000
    assert await cached.get_linked_pod(NS, UID, SVC) == 3
    asked_at = time.monotonic()
    while await cached.get_linked_pod(NS, UID, SVC) == 3:
        assert asked_at < deadline
        await asyncio.sleep(0.001)
        asked_at = time.monotonic()
    assert wire.redis.get(LINK) is None


async def test_a_temporary_link_ends_without_a_word_of_the_server(own_server: Callable[..., RedisServer]) -> None:
    server = own_server(settings={"enable-debug-command": "local"})
    async with StatefulExecutor.from_url(server.url, cache=True) as executor:
        with server.client() as raw:
            # A busy server may leave a key that has expired for long; it says so when somebody asks for the key.
            raw.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
        await executor.set_linked_pod(NS, UID, SVC, 3, persist_seconds=1)
        assert await executor.get_linked_pod(NS, UID, SVC) == 3

        async def ended() -> bool:
            return await executor.get_linked_pod(NS, UID, SVC) is None

        await until_async(ended, 5, "the cached link to end")


async def test_a_link_that_becomes_temporary_is_read_again(cached: StatefulExecutor, wire: Wire) -> None:
    await cached.set_linked_pod(NS, UID, SVC, 3)
    assert await cached.get_linked_pod(NS, UID, SVC) == 3
    wire.redis.pexpire(LINK, 60_000)

    async def asked_again() -> bool:
        wire.redis.config_resetstat()
        assert await cached.get_linked_pod(NS, UID, SVC) == 3
        return reads(wire.redis) == 1

    await until_async(asked_again, 5, "the link to be read again")
    wire.redis.persist(LINK)


async def test_all_is_forgotten_when_the_connection_drops(
    cached: StatefulExecutor, aexecutor: StatefulExecutor, raw: redis.Redis
) -> None:
    await cached.set_linked_pod(NS, UID, SVC, 3)
    assert await cached.get_linked_pod(NS, UID, SVC) == 3
    raw.client_kill_filter(_type="normal", skipme=True)
    raw.set(LINK, "4")  # nobody is there to be told

    async def seen() -> bool:
        return await cached.get_linked_pod(NS, UID, SVC) == 4

    await until_async(seen, 5, "the change made meanwhile", retry_on=(RedisUnavailable,))
    raw.set(LINK, "3")


async def test_a_dead_connection_is_noticed_without_calls(own_server: Callable[..., RedisServer]) -> None:
    server = own_server()
    async with StatefulExecutor.from_url(server.url, cache=True, timeout_seconds=0.3) as cached:
        await cached.set_linked_pod(NS, UID, SVC, 3)
        assert await cached.get_linked_pod(NS, UID, SVC) == 3
        server.freeze()

        async def distrusted() -> bool:
            try:
                return await cached.get_linked_pod(NS, UID, SVC) != 3
            except RedisUnavailable:
                return True

        await until_async(distrusted, 10, "the silent connection to be given up")
        server.thaw()


async def test_a_read_that_a_change_overtook_is_not_kept() -> None:
    cache = LinkCache(10)
    link = (NS, UID, SVC)
    token = cache.asks(link)
    cache.hear([b"invalidate", [LINK.encode()]])
    assert not cache.read_ended(link, token)
    token = cache.asks(link)
    cache.hear([b"invalidate", [b"sf:{games:lk:somebody}lobby", b"foreign", b"\xff"]])
    assert cache.read_ended(link, token)
    token = cache.asks(link)
    cache.hear([b"invalidate", None])
    assert not cache.read_ended(link, token)


@pytest.mark.only_on(*ONE_SERVER, reason="one server answers, and tells of the change, down one connection")
async def test_a_change_that_arrives_with_the_answer_is_not_forgotten(cached: StatefulExecutor, wire: Wire) -> None:
    await cached.get_linked_pod(NS, "nobody", SVC)  # the server knows the script now
    await cached.set_linked_pod(NS, UID, SVC, 3)
    wire.redis.config_resetstat()
    call = asyncio.create_task(cached.get_linked_pod(NS, UID, SVC))
    await asyncio.sleep(0)  # it leaves, and until it is awaited the loop reads nothing
    until(lambda: reads(wire.redis) == 1, 5, "the server to answer")
    wire.redis.set(LINK, "4")
    wire.redis.ping()  # by its answer, the server has told everybody
    assert await call == 3
    assert await cached.get_linked_pod(NS, UID, SVC) == 4
    wire.redis.set(LINK, "3")


def test_a_links_time_counts_from_the_question() -> None:
    cache = LinkCache(10)
    asked_at = time.monotonic() - 60
    cache.keep((NS, UID, SVC), 3, 90_500, asked_at)
    assert cache.entries[NS, UID, SVC] == (3, asked_at + 90.5)


@asynccontextmanager
async def keeps_its_connection(server: RedisServer, wire: Wire) -> AsyncIterator[StatefulExecutor]:
    """An executor that has just had an answer, whose connection is the same at the end; `wire` counts from here."""

    def connections() -> set[str]:
        return {client["id"] for client in wire.redis.client_list(_type="normal")}

    async with StatefulExecutor.from_url(server.url, cache=True, timeout_seconds=0.4) as cached:
        await cached.get_linked_pod(NS, UID, SVC)
        wire.redis.config_resetstat()
        before = connections()
        yield cached
        assert connections() == before


@pytest.mark.only_on(*ONE_SERVER, reason="where connections are counted, only ours may come and go")
async def test_a_connection_without_calls_lives_on(server: RedisServer, wire: Wire) -> None:
    async with keeps_its_connection(server, wire):
        # At least a timeout lies between two signs of life; without the first, two are the end of the connection.
        await until_async(lambda: wire.calls_of("ping") >= 4, 20, "four signs of life")


@pytest.mark.only_on(*ONE_SERVER, reason="where connections are counted, only ours may come and go")
async def test_a_connection_outlives_a_process_that_stood_still(server: RedisServer, wire: Wire) -> None:
    async with keeps_its_connection(server, wire) as cached:
        time.sleep(1)  # noqa: ASYNC251 - nothing runs, as when the machine has no time for it
        await until_async(lambda: wire.calls_of("ping") >= 1, 20, "the server to be asked")
        assert await cached.get_linked_pod(NS, UID, SVC) is None


async def test_it_holds_so_many_links_at_most(server: RedisServer, raw: redis.Redis) -> None:
    async with StatefulExecutor.from_url(server.url, cache=True, cache_entries=10) as cached:
        for number in range(30):
            await cached.get_linked_pod(NS, f"u{number}", SVC)
        raw.config_resetstat()
        for number in range(20, 30):
            await cached.get_linked_pod(NS, f"u{number}", SVC)
        assert reads(raw) == 0
        await cached.get_linked_pod(NS, "u19", SVC)
        assert reads(raw) == 1


@pytest.mark.parametrize("entries", [0, -1, 1.5, True])
def test_a_size_that_makes_no_sense_is_refused(entries: int) -> None:
    with pytest.raises(InvalidArgument) as error:
        StatefulExecutor.from_url("redis://localhost", cache=True, cache_entries=entries)
    assert error.value.argument == "cache_entries"


async def test_bad_arguments_are_refused_as_without_a_cache(cached: StatefulExecutor) -> None:
    for uid in ([], None, "", "a}b"):
        with pytest.raises(InvalidArgument) as error:
            await cached.get_linked_pod(NS, uid, SVC)  # type: ignore[arg-type]
        assert error.value.argument == "uid"
