"""A move to another primary is noticed by the operator's monitor, however short it was and though no call failed."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from podlink import StatefulExecutor
from podlink.controller.monitor import RedisMonitor
from podlink.metrics import Metrics
from sandbox.processes import until, until_async
from sandbox.redis_servers import RedisServer
from store.harness import LINK, NS, SVC, UID

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Switch:
    """One address that leads to one server or another, as the one that Sentinels name."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._open: set[asyncio.StreamWriter] = set()
        self.url = ""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Switch]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as listener:
            self.url = f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0"
            yield self
            await self.to(self._server)

    async def to(self, server: RedisServer) -> None:
        """Lead to another server, and close what is open, as a primary does that Sentinels demote."""
        self._server = server
        for writer in list(self._open):
            writer.close()
        await until_async(lambda: not self._open, 10, "the connections to be closed")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self._server.port)
        self._open.add(writer)
        try:
            await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))
        finally:
            self._open.discard(writer)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
    except ConnectionError:
        pass  # the other end is closed below, which ends the other direction too
    finally:
        writer.close()


async def test_there_and_back_between_two_probes(own_server: Callable[..., RedisServer]) -> None:
    primary, other = own_server(), own_server()
    doubts: list[str] = []
    async with Switch(primary).listening() as switch, StatefulExecutor.from_url(switch.url) as executor:
        monitor = RedisMonitor(executor, Metrics(), name="redis", on_doubt=doubts.append)
        await monitor._probe()
        await monitor.mark()
        # The other one has the same data, and so the same marker.
        other.ask("REPLICAOF", "127.0.0.1", primary.port)
        until(lambda: other.ask("INFO", "replication")["master_link_status"] == "up", 20, "the replica")
        other.ask("REPLICAOF", "NO", "ONE")
        await monitor._probe()
        assert doubts == []

        await switch.to(other)
        await executor.set_linked_pod(NS, UID, SVC, 1)
        await switch.to(primary)
        assert (await executor.get_linked_pod(NS, UID, SVC), other.ask("GET", LINK)) == (None, "1")
        await monitor._probe()
        assert doubts == ["redis_return"]
        await monitor._probe()
        assert doubts == ["redis_return"], "told once"
