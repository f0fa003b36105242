"""Servers that are gone or hang: every call ends in time, and all is well again by itself when they are back."""

from __future__ import annotations

import asyncio
import itertools
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from podlink import PodLinkError, RedisUnavailable, StatefulExecutor
from podlink.store import operations
from sandbox.processes import until_async
from sandbox.redis_cluster import ClusterSet
from sandbox.redis_sentinel import SentinelSet
from sandbox.redis_servers import RedisServer
from store.harness import NS, PATIENCE_SECONDS, SVC, UID, Awaited, Topology, goes_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

TIMEOUT_SECONDS = 0.5
# No test is to measure the machine: calls that end at all end within this.
GENEROUS_SECONDS = 20
AT_ONCE = 30


@pytest.fixture(params=["one", "sentinels", "cluster"])
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[Topology, list[RedisServer]]]:
    """What a client connects to, and the servers it depends on. None of them fails over by itself."""
    never = 60
    if request.param == "one":
        with RedisServer() as server:
            yield server, [server]
    elif request.param == "sentinels":
        with SentinelSet(down_after_seconds=never) as sentinels:
            yield sentinels, sentinels.servers
    else:
        with ClusterSet(node_timeout_seconds=never) as cluster:
            yield cluster, cluster.servers


async def outcomes(executor: Awaited) -> list[Any]:
    """How many calls at once end: results and errors; the test fails if they do not."""
    calls = [executor.set_linked_pod(NS, f"u{number}", SVC, number) for number in range(AT_ONCE)]
    calls += [executor.get_linked_pod(NS, "nobody", SVC) for _ in range(AT_ONCE)]
    return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), GENEROUS_SECONDS)


NEW = [None] * (2 * AT_ONCE)
AGAIN = [*range(AT_ONCE), *[None] * AT_ONCE]


async def test_servers_that_hang_and_go_on(
    servers: tuple[Topology, list[RedisServer]], connect: Callable[..., Awaited]
) -> None:
    topology, frozen = servers
    executor = connect(topology.url, timeout_seconds=TIMEOUT_SECONDS)
    assert await outcomes(executor) == NEW
    for server in frozen:
        server.freeze()
    for _ in range(2):
        assert {type(error) for error in await outcomes(executor)} == {RedisUnavailable}
    for server in frozen:
        server.thaw()
    for number in range(AT_ONCE):  # links on each of them, and each is tried again in its own time
        await goes_on(lambda n=number: executor.get_linked_pod(NS, f"u{n}", SVC))
    assert await outcomes(executor) == AGAIN


async def test_a_server_that_is_gone_and_comes_back(
    own_server: Callable[..., RedisServer], connect: Callable[..., Awaited]
) -> None:
    server = own_server()
    executor = connect(server.url, timeout_seconds=TIMEOUT_SECONDS)
    await outcomes(executor)
    await asyncio.to_thread(server.kill)
    for _ in range(2):
        assert {type(error) for error in await outcomes(executor)} == {RedisUnavailable}
    # By now the connection is known to be gone: no call is sent, and each says so.
    assert {error.maybe_applied for error in await outcomes(executor)} == {False}
    await asyncio.to_thread(server.start)
    await goes_on(lambda: executor.get_linked_pod(NS, UID, SVC))
    assert await outcomes(executor) == NEW


async def test_a_server_that_comes_back_is_not_stormed(own_server: Callable[..., RedisServer]) -> None:
    server = own_server()
    async with StatefulExecutor.from_url(server.url, timeout_seconds=TIMEOUT_SECONDS) as executor:
        failures = itertools.count()
        back = asyncio.Event()

        async def call_until_it_is_back(number: int) -> None:
            while True:
                try:
                    await executor.set_linked_pod(NS, f"u{number}", SVC, number)
                except RedisUnavailable:
                    next(failures)
                    await asyncio.sleep(0)
                else:
                    if back.is_set():
                        return
                    await asyncio.sleep(0)

        callers = [asyncio.create_task(call_until_it_is_back(number)) for number in range(300)]
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        back.set()
        await asyncio.wait_for(asyncio.gather(*callers), PATIENCE_SECONDS)
        assert next(failures) > 0
        # A few are those that waited for its start.
        assert server.ask("INFO", "stats")["total_connections_received"] < 30


async def test_a_server_that_drops_every_connection_is_tried_less_and_less(connect: Callable[..., Awaited]) -> None:
    tries = itertools.count()

    async def drop(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        next(tries)
        writer.close()
        await writer.wait_closed()

    listener = await asyncio.start_server(drop, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        executor = connect(f"redis://127.0.0.1:{port}", timeout_seconds=TIMEOUT_SECONDS)
        for _ in range(500):
            with pytest.raises(PodLinkError):
                await executor.get_linked_pod(NS, UID, SVC)
            await asyncio.sleep(0.001)
    finally:
        listener.close()
        await listener.wait_closed()
    assert next(tries) < 100


async def test_after_a_recovery_the_waits_begin_anew(
    own_server: Callable[..., RedisServer], connect: Callable[..., Awaited]
) -> None:
    server = own_server()
    executor = connect(server.url, timeout_seconds=TIMEOUT_SECONDS)

    async def told_to_wait() -> float | None:
        """Seconds until the next attempt; None where this call was one, or the loss of a connection."""
        with pytest.raises(RedisUnavailable) as error:
            await executor.get_linked_pod(NS, UID, SVC)
        told = re.search(r"tried again in ([\d.]+) s", str(error.value))
        return float(told[1]) if told else None

    async def long_wait() -> bool:
        return (await told_to_wait() or 0.0) >= 0.4

    await executor.get_linked_pod(NS, UID, SVC)
    await asyncio.to_thread(server.kill)
    await until_async(long_wait, GENEROUS_SECONDS, "attempts to become rare")
    await asyncio.to_thread(server.start)
    await goes_on(lambda: executor.get_linked_pod(NS, UID, SVC))
    await asyncio.to_thread(server.kill)
    attempts = 0
    while (wait := await told_to_wait()) is None:
        attempts += 1
    # As long as behind so many failures, none of which was before the recovery; it is told to a tenth.
    assert wait <= 0.05 * 2 ** (attempts - 1) + 0.05


async def test_a_connection_whose_making_was_cancelled_is_made_again(own_server: Callable[..., RedisServer]) -> None:
    async with StatefulExecutor.from_url(own_server().url) as executor:
        call = asyncio.create_task(executor.get_linked_pod(NS, UID, SVC))
        await asyncio.sleep(0)  # the task that connects exists by now, and has not begun
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.wait([call])
        assert await executor.get_linked_pod(NS, UID, SVC) is None


async def test_calls_behind_a_primary_that_hands_over_and_hangs_end_in_time(
    own_server: Callable[..., RedisServer],
) -> None:
    server = own_server()
    with server.client() as raw:
        async with (
            hanging_after(b"READONLY", server) as url,
            StatefulExecutor.from_url(url, timeout_seconds=TIMEOUT_SECONDS) as executor,
        ):
            await asyncio.gather(*(executor.set_linked_pod(NS, f"u{number}", SVC, 1) for number in range(20)))
            raw.replicaof("127.0.0.1", "1")
            first = executor.run(operations.set_linked_pod(NS, UID, SVC, 2))
            others = [executor.run(operations.set_linked_pod(NS, f"u{number}", SVC, 2)) for number in range(8)]
            tasks = [asyncio.ensure_future(call) for call in (first, *others)]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            raw.replicaof("NO", "ONE")
            # The connection on which the others wait was left already, when the first was answered.
            told = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), GENEROUS_SECONDS)
            assert {type(error) for error in told} == {RedisUnavailable}
            assert await goes_on(lambda: executor.set_linked_pod(NS, UID, SVC, 3)) is None


@asynccontextmanager
async def hanging_after(word: bytes, server: RedisServer) -> AsyncIterator[str]:
    """The URL of a server whose first connection falls silent behind the first reply that has this word in it."""
    tasks: set[asyncio.Task[None]] = set()
    connections = itertools.count()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, downstream = await asyncio.open_connection("127.0.0.1", server.port)
        later_one = next(connections) > 0
        silent_for_good = False

        async def up() -> None:
            while data := await reader.read(65536):
                downstream.write(data)

        async def down() -> None:
            nonlocal silent_for_good
            while data := await upstream.read(65536):
                if silent_for_good:
                    continue
                if word in data and not later_one:
                    silent_for_good = True
                    data = data[: data.index(b"\r\n", data.index(word)) + 2]
                writer.write(data)

        pumps = [asyncio.create_task(up()), asyncio.create_task(down())]
        tasks.update(pumps)
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            downstream.close()
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        await asyncio.wait(tasks)
        await listener.wait_closed()
