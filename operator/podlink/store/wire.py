"""One connection to a Redis server that all tasks of an event loop share.

redis-py finds the server, opens the connection, encrypts it and logs in. Then the transport is handed over to a
protocol of ours: requests are packed in C and written at once, replies are matched to requests by their order, and no
task, no timer and no lock stands between a reply's arrival and its caller.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import hiredis
from redis.asyncio.connection import AbstractConnection

from podlink.store.calls import Request, pack
from podlink.store.outcomes import Lost, Reply, server_error

_NOTHING_YET: Final = object()

Answered = Callable[[list[Reply]], None]
"""Called once, with a reply to each request."""


class Wire(asyncio.Protocol):
    """A connection that is open, until it is lost or retired.

    Attributes:
        heard_at: monotonic time at which the server last sent something.
        known: names of the scripts whose text was sent here.
    """

    def __init__(
        self, connection: AbstractConnection, on_lost: Callable[["Wire"], None], on_push: Callable[[Any], None]
    ) -> None:
        """Take a connection over; see `open_wire`."""
        self.heard_at = time.monotonic()
        self.known: set[str] = set()
        self._on_lost = on_lost
        self._on_push = on_push
        self._reader = hiredis.Reader(replyError=server_error, notEnoughData=_NOTHING_YET)
        # Requests under way, in order: how many replies are missing, the replies that came, and whom to tell.
        self._under_way: deque[tuple[int, list[Reply], Answered]] = deque()
        self._retired = False
        self._cause: BaseException = ConnectionError("the server closed the connection")
        self._closed = asyncio.get_running_loop().create_future()
        # A writer that nobody holds closes its transport.
        self._writer = _handed_over(connection)
        self._transport = cast("asyncio.Transport", self._writer.transport)
        self._transport.set_protocol(self)

    def send(self, requests: Sequence[Request], answered: Answered) -> None:
        """Send requests; `answered` is told the replies, or that they were lost, and is never called from in here."""
        packed = pack(requests)  # which may raise, and then nobody is to wait for a reply
        self._under_way.append((len(requests), [], answered))
        self._transport.write(packed)

    def retire(self) -> None:
        """Take no more requests, and close when the last one is answered."""
        self._retired = True
        if not self._under_way:
            self._transport.close()

    def drop(self, cause: BaseException) -> None:
        """Close at once; whoever waits for a reply is told that it is lost, and why."""
        self._cause = cause
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Match what arrived to the requests; called by the event loop."""
        self.heard_at = time.monotonic()
        reader = self._reader
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not _NOTHING_YET:
                if type(reply) is hiredis.PushNotification:
                    self._on_push(reply)
                    continue
                if not self._under_way:
                    self.drop(ConnectionError(f"the server answered what nobody asked: {reply!r:.60}"))
                    return
                wanted, replies, answered = self._under_way[0]
                replies.append(reply)
                if len(replies) == wanted:
                    self._under_way.popleft()
                    answered(replies)
        except hiredis.ProtocolError as error:
            self.drop(ConnectionError(f"the server does not speak the Redis protocol: {error}"))
        if self._retired and not self._under_way:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody who waits; called by the event loop, once."""
        cause = exc or self._cause
        if not self._closed.done():
            self._closed.set_result(None)
        self._on_lost(self)
        while self._under_way:
            wanted, replies, answered = self._under_way.popleft()
            answered(replies + [Lost(cause, sent=True)] * (wanted - len(replies)))

    async def aclose(self) -> None:
        """Close the connection and wait until it is closed."""
        self._transport.abort()
        await asyncio.wait([self._closed])


def _handed_over(connection: AbstractConnection) -> asyncio.StreamWriter:
    """Take the streams away from a connection, which is not connected any more for all it knows."""
    writer = connection._writer  # noqa: SLF001 - redis-py has no other way to let go of them
    if writer is None:
        raise ConnectionError("the connection is not open")
    connection._reader = connection._writer = None  # noqa: SLF001
    return writer


async def open_wire(
    connection: AbstractConnection, on_lost: Callable[[Wire], None], on_push: Callable[[Any], None]
) -> Wire:
    """Connect, log in, and take the connection over.

    Args:
        connection: of redis-py, not connected yet; it is ours from now on.
        on_lost: told once, when the connection is gone, before those who wait for replies.
        on_push: told what the server sends of its own accord.

    Raises:
        RedisError, OSError: as redis-py raises them.
    """
    try:
        await connection.connect()
        return Wire(connection, on_lost, on_push)
    except BaseException:
        await connection.disconnect()
        raise
