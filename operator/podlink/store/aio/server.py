"""One server and the connection to it. It connects when it is needed, and drops a connection that does not answer."""

import asyncio
import contextvars
import time
from collections.abc import Callable
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection

from podlink.store.aio.connection import Connection, open_connection
from podlink.store.batching.exchange import Request
from podlink.store.batching.outcomes import Lost, Reply, timeout_error
from podlink.store.topology.circuit import Circuit

Connect = Callable[[], AbstractConnection]
"""Makes a redis-py connection to the server, not connected yet."""

Push = Callable[[Any], None]
"""Called with each push message of the server."""


def _ignore(_: object) -> None:
    """Ignore a message."""


class Server:
    """One server and the connection to it.

    Attributes:
        connection: the current connection, or None.
        opened: connections that were opened so far.
    """

    def __init__(
        self,
        connect: Connect,
        timeout_seconds: float,
        *,
        handshake: tuple[Request, ...] = (),
        on_push: Push = _ignore,
        on_down: Callable[[], None] = lambda: None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            connect: makes connections.
            timeout_seconds: limit of one attempt to connect.
            handshake: requests to send first on each connection. An error reply is an error of connecting. A handshake
                asks the server for push messages. So a silent connection gets a PING, and is dropped if there is no
                answer within 2.5 timeouts.
            on_push: called with each push message of the server.
            on_down: called when the connection is lost.
        """
        self.connection: Connection | None = None
        self._connect = connect
        self._timeout_seconds = timeout_seconds
        self._handshake = handshake
        self._on_push = on_push
        self._on_down = on_down
        self._circuit = Circuit()
        self._cause: BaseException = ConnectionError("not tried yet")
        self._closed = False
        self._opening: asyncio.Task[None] | None = None
        self._alive_timer: asyncio.TimerHandle | None = None
        self._connections: set[Connection] = set()
        self.opened = 0
        # A connection serves many callers, so it must not run in the context of one of them.
        self._context: Final = contextvars.Context()

    @property
    def connections(self) -> int:
        """Number of open connections. More than one while requests on a retired connection are still in flight."""
        return len(self._connections)

    @property
    def is_away(self) -> bool:
        """Whether the last attempt to connect failed."""
        return self._circuit.is_open

    def open(self, done: Callable[[BaseException | None], None]) -> None:
        """Connect, unless that failed a moment ago. `done` gets the error, or None, maybe within this method."""
        if self._closed:
            done(ConnectionError("the executor was closed"))
            return
        if left := self._circuit.seconds_left:
            done(ConnectionError(f"{self._cause} (tried again in {left:.1f} s)"))
            return
        self._opening = asyncio.get_running_loop().create_task(self._open(done), context=self._context)
        # If all tasks are cancelled, this one may end before it has started.
        cancelled = ConnectionError("connecting was cancelled")
        self._opening.add_done_callback(lambda task: done(cancelled) if task.cancelled() else None)

    def leave(self) -> None:
        """Open a new connection for the next request. Requests in flight still get their replies."""
        if self.connection is not None:
            connection, self.connection = self.connection, None
            connection.retire()
            self._on_down()

    def drop(self, connection: Connection, cause: BaseException) -> None:
        """Close a connection, which may be a retired one. Requests in flight there end with this cause."""
        connection.drop(cause)
        if self.connection is connection:
            self.connection = None
            self._on_down()

    async def aclose(self) -> None:
        """Close all connections, for good."""
        self._closed = True
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self._alive_timer is not None:
            self._alive_timer.cancel()
        self.connection = None
        for connection in list(self._connections):
            await connection.aclose()

    async def _open(self, done: Callable[[BaseException | None], None]) -> None:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                connection = await self._connected()
        except TimeoutError:
            self._failed(timeout_error(self._timeout_seconds, sent=False), done)
        except Exception as error:  # noqa: BLE001 - a provider of credentials may raise anything, and callers must get it
            self._failed(error, done)
        else:
            self._circuit.succeeded()
            self.connection = connection
            if self._handshake:
                self._check_alive(connection)
            done(None)

    async def _connected(self) -> Connection:
        connection = await open_connection(self._connect(), self._lost, self._on_push)
        self._connections.add(connection)
        self.opened += 1
        try:
            if self._handshake:
                answered: asyncio.Queue[list[Reply]] = asyncio.Queue()
                connection.send(self._handshake, answered.put_nowait)
                _raise_errors(await answered.get())
        except BaseException as error:
            connection.drop(error)
            raise
        return connection

    def _check_alive(self, connection: Connection, asked_at: float = 0.0) -> None:
        """Check that a connection that waits for push messages is still alive."""
        if self.connection is not connection:
            return
        now = time.monotonic()
        # If this timer is late because the process was stopped, that says nothing about the server. So ask it first.
        if asked_at > connection.last_read_at:
            if now - asked_at >= self._timeout_seconds:
                self.drop(connection, timeout_error(self._timeout_seconds, sent=True))
                return
        elif now - connection.last_read_at >= self._timeout_seconds:
            connection.send([("PING",)], _ignore)
            asked_at = now
        loop, pause = asyncio.get_running_loop(), self._timeout_seconds / 2
        self._alive_timer = loop.call_later(pause, self._check_alive, connection, asked_at, context=self._context)

    def _failed(self, error: BaseException, done: Callable[[BaseException | None], None]) -> None:
        self._circuit.failed()
        self._cause = error
        done(error)

    def _lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if self.connection is connection:
            self.connection = None
            self._on_down()


def _raise_errors(replies: list[Reply]) -> None:
    for reply in replies:
        error = reply.cause if isinstance(reply, Lost) else reply
        if isinstance(error, BaseException):
            raise error
