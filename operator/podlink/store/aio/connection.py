"""One connection to a Redis server that all tasks of an event loop share.

redis-py finds the server, opens the connection, encrypts it and logs in. Then an asyncio protocol takes over the
transport. It packs requests in C and writes them at once. It matches replies to requests by their order. Between the
arrival of a reply and its caller there is no task, no timer and no lock.
"""

import asyncio
import contextlib
import functools
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError

from podlink.store.batching.exchange import Request, pack
from podlink.store.batching.outcomes import Lost, Reply, server_error

_NOTHING_YET: Final = object()
_LONGEST_REFUSAL: Final = 4096

Answered = Callable[[list[Reply]], None]
"""Called once, with a reply for each request."""


class Connection(asyncio.Protocol):
    """An open connection, until it is lost or retired.

    Attributes:
        last_read_at: monotonic time at which the server last sent something.
        known: names of the scripts whose text was sent here.
    """

    def __init__(
        self, connection: AbstractConnection, on_lost: Callable[["Connection"], None], on_push: Callable[[Any], None]
    ) -> None:
        """Take over the streams of a redis-py connection, see `open_connection`."""
        self.last_read_at = time.monotonic()
        self.known: set[str] = set()
        self._on_lost = on_lost
        self._on_push = on_push
        host = getattr(connection, "host", "")
        self._reader = hiredis.Reader(replyError=functools.partial(server_error, host=host), notEnoughData=_NOTHING_YET)
        # Requests in flight, in order: the number of replies, the replies so far, and the callback.
        self._in_flight: deque[tuple[int, list[Reply], Answered]] = deque()
        self._retired = False
        self._cause: BaseException = ConnectionError("the server closed the connection")
        self._closed = asyncio.get_running_loop().create_future()
        # Keep the writer: it closes its transport when it is garbage collected.
        self._writer = _take_streams(connection)
        self._transport = cast("asyncio.Transport", self._writer.transport)
        self._transport.set_protocol(self)

    def send(self, requests: Sequence[Request], answered: Answered) -> None:
        """Send requests. `answered` gets the replies, or `Lost` for each, after this method has returned."""
        packed = pack(requests)  # first, because it may raise, and then there will be no reply
        self._in_flight.append((len(requests), [], answered))
        self._transport.write(packed)

    def retire(self) -> None:
        """Send no more requests. Close when the last request in flight has its reply."""
        self._retired = True
        if not self._in_flight:
            self._transport.close()

    def drop(self, cause: BaseException) -> None:
        """Close at once. Requests in flight end with `Lost` and this cause."""
        self._cause = cause
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Match replies to requests. The event loop calls this."""
        self.last_read_at = time.monotonic()
        reader = self._reader
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not _NOTHING_YET:
                if type(reply) is hiredis.PushNotification:
                    self._on_push(reply)
                    continue
                if not self._in_flight:
                    self.drop(ConnectionError(f"the server answered what nobody asked: {reply!r:.60}"))
                    return
                wanted, replies, answered = self._in_flight[0]
                replies.append(reply)
                if len(replies) == wanted:
                    self._in_flight.popleft()
                    answered(replies)
        except hiredis.ProtocolError as error:
            self.drop(ConnectionError(f"the server does not speak the Redis protocol: {error}"))
        if self._retired and not self._in_flight:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End all requests in flight. The event loop calls this once."""
        cause = exc or self._cause
        if not self._closed.done():
            self._closed.set_result(None)
        self._on_lost(self)
        while self._in_flight:
            wanted, replies, answered = self._in_flight.popleft()
            answered(replies + [Lost(cause, sent=True)] * (wanted - len(replies)))

    async def aclose(self) -> None:
        """Close the connection and wait until it is closed."""
        self._transport.abort()
        await asyncio.wait([self._closed])


def _take_streams(connection: AbstractConnection) -> asyncio.StreamWriter:
    """Take the streams from a redis-py connection. It is then no longer connected."""
    writer = connection._writer  # noqa: SLF001 - redis-py has no public way to do this
    if writer is None:
        raise ConnectionError("the connection is not open")
    connection._reader = connection._writer = None  # noqa: SLF001
    return writer


@contextlib.contextmanager
def _second_socket(connection: AbstractConnection) -> Iterator[socket.socket | None]:
    """Yield one more socket of the connection, which stays open when asyncio closes its own. None with TLS."""
    writer = connection._writer  # noqa: SLF001 - redis-py has no public way to do this
    if writer is None or writer.get_extra_info("ssl_object") is not None:
        yield None
        return
    # os.dup, because the sockets of other event loops have no dup().
    with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as second:
        second.setblocking(False)
        yield second


def _last_words(reader: asyncio.StreamReader | None, second: socket.socket | None) -> Exception | None:
    """Return the error that a server sent before it closed a connection that it had not let in.

    A server with too many clients, or in protected mode, answers before it reads. The write that fails afterwards hides
    this. From Python 3.12 on, the write may fail before the event loop has read the answer. Then it is in the socket.
    """
    heard = bytes(reader._buffer if reader else b"")  # type: ignore[attr-defined] # noqa: SLF001
    if second is not None:
        with contextlib.suppress(OSError):  # nothing is there, or nothing more
            heard += second.recv(_LONGEST_REFUSAL)
    line, end, _ = heard.partition(b"\r\n")
    return server_error(line[1:].decode(errors="replace")) if end and line.startswith(b"-") else None


async def open_connection(
    connection: AbstractConnection, on_lost: Callable[[Connection], None], on_push: Callable[[Any], None]
) -> Connection:
    """Connect, log in, and take over the connection.

    Args:
        connection: a redis-py connection that is not connected yet. The caller must not use it any more.
        on_lost: called once when the connection is lost, before the requests in flight end.
        on_push: called with each push message of the server.

    Raises:
        RedisError, OSError: as redis-py raises them, or what the server said before it closed the connection.
    """
    log_in = connection.redis_connect_func or AbstractConnection.on_connect

    async def log_in_and_listen(connecting: AbstractConnection) -> None:
        reader = connecting._reader  # noqa: SLF001 - redis-py forgets it when a write fails
        with _second_socket(connecting) as second:
            try:
                await log_in(connecting)
            except (RedisConnectionError, OSError) as error:
                raise _last_words(reader, second) or error from None

    connection.redis_connect_func = log_in_and_listen  # type: ignore[assignment] # its type wants a keyword argument
    try:
        await connection.connect()
        return Connection(connection, on_lost, on_push)
    except BaseException:
        await connection.disconnect()
        raise
