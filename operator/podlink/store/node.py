"""One server, as those who send to it see it: connected when it is needed, and left when it does not answer."""

import asyncio
import contextvars
import time
from collections.abc import Callable
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection

from podlink.store.calls import Request
from podlink.store.circuit import Circuit
from podlink.store.outcomes import Lost, Reply, timeout_error
from podlink.store.wire import Wire, open_wire

Connect = Callable[[], AbstractConnection]
"""Makes a redis-py connection to the server, not connected yet."""

Push = Callable[[Any], None]
"""Told what the server sends of its own accord."""


def _ignore(_: object) -> None:
    """What nobody asked to hear."""


class Node:
    """One server and the connection to it.

    Attributes:
        wire: the connection; None while there is none.
    """

    def __init__(
        self,
        connect: Connect,
        timeout_seconds: float,
        *,
        greeting: tuple[Request, ...] = (),
        on_push: Push = _ignore,
        on_down: Callable[[], None] = lambda: None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            connect: makes connections.
            timeout_seconds: of one attempt to connect.
            greeting: sent first on each connection; an error in reply is an error of connecting. It asks the server
                to push, so a connection that is silent is asked for a sign of life, and left within 2.5 timeouts.
            on_push: told what the server sends of its own accord.
            on_down: told when the connection is gone.
        """
        self.wire: Wire | None = None
        self._connect = connect
        self._timeout_seconds = timeout_seconds
        self._greeting = greeting
        self._on_push = on_push
        self._on_down = on_down
        self._circuit = Circuit()
        self._cause: BaseException = ConnectionError("not tried yet")
        self._closed = False
        self._opening: asyncio.Task[None] | None = None
        self._listening: asyncio.TimerHandle | None = None
        self._wires: set[Wire] = set()
        # What one caller keeps in context variables is no business of a connection.
        self._context: Final = contextvars.Context()

    @property
    def connections(self) -> int:
        """How many are open; more than one while calls on one that was left are still answered."""
        return len(self._wires)

    @property
    def is_away(self) -> bool:
        """Whether the last attempt to connect failed."""
        return self._circuit.is_open

    def open(self, done: Callable[[BaseException | None], None]) -> None:
        """Connect, unless that failed a moment ago; `done` is told the error, or None, and may be told from in here."""
        if self._closed:
            done(ConnectionError("the executor was closed"))
            return
        if left := self._circuit.seconds_left:
            done(ConnectionError(f"{self._cause} (tried again in {left:.1f} s)"))
            return
        self._opening = asyncio.get_running_loop().create_task(self._open(done), context=self._context)
        # Somebody may cancel every task there is, this one before it has begun.
        cancelled = ConnectionError("connecting was cancelled")
        self._opening.add_done_callback(lambda task: done(cancelled) if task.cancelled() else None)

    def leave(self) -> None:
        """Connect anew before the next request; what is under way is still answered."""
        if self.wire is not None:
            wire, self.wire = self.wire, None
            wire.retire()
            self._on_down()

    def drop(self, wire: Wire, cause: BaseException) -> None:
        """Close a connection, which may have been left before; whoever waits for a reply there is told why."""
        wire.drop(cause)
        if self.wire is wire:
            self.wire = None
            self._on_down()

    async def aclose(self) -> None:
        """Close all connections, for good."""
        self._closed = True
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self._listening is not None:
            self._listening.cancel()
        self.wire = None
        for wire in list(self._wires):
            await wire.aclose()

    async def _open(self, done: Callable[[BaseException | None], None]) -> None:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                wire = await self._connected()
        except TimeoutError:
            self._failed(timeout_error(self._timeout_seconds, sent=False), done)
        except Exception as error:  # noqa: BLE001 - a provider of credentials may raise anything; callers are told
            self._failed(error, done)
        else:
            self._circuit.succeeded()
            self.wire = wire
            if self._greeting:
                self._listen(wire)
            done(None)

    async def _connected(self) -> Wire:
        wire = await open_wire(self._connect(), self._lost, self._on_push)
        self._wires.add(wire)
        try:
            if self._greeting:
                answered: asyncio.Queue[list[Reply]] = asyncio.Queue()
                wire.send(self._greeting, answered.put_nowait)
                _raise_errors(await answered.get())
        except BaseException as error:
            wire.drop(error)
            raise
        return wire

    def _listen(self, wire: Wire, asked_at: float = 0.0) -> None:
        """Make sure that a connection on which pushes are awaited is not dead without a word."""
        if self.wire is not wire:
            return
        now = time.monotonic()
        # That this comes late, because the process stood still, says nothing of the server: it has to be asked first.
        if asked_at > wire.heard_at:
            if now - asked_at >= self._timeout_seconds:
                self.drop(wire, timeout_error(self._timeout_seconds, sent=True))
                return
        elif now - wire.heard_at >= self._timeout_seconds:
            wire.send([("PING",)], _ignore)
            asked_at = now
        loop, pause = asyncio.get_running_loop(), self._timeout_seconds / 2
        self._listening = loop.call_later(pause, self._listen, wire, asked_at, context=self._context)

    def _failed(self, error: BaseException, done: Callable[[BaseException | None], None]) -> None:
        self._circuit.failed()
        self._cause = error
        done(error)

    def _lost(self, wire: Wire) -> None:
        self._wires.discard(wire)
        if self.wire is wire:
            self.wire = None
            self._on_down()


def _raise_errors(replies: list[Reply]) -> None:
    for reply in replies:
        error = reply.cause if isinstance(reply, Lost) else reply
        if isinstance(error, BaseException):
            raise error
