"""One server, as the blocking executor uses it: a pool of connections that threads share."""

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection
from redis.exceptions import ReadOnlyError, RedisError, ResponseError
from redis.retry import Retry

from podlink.store.batching.exchange import Request, SendMode, exchange, pack
from podlink.store.batching.outcomes import Lost, Reply, located, timeout_error
from podlink.store.blocking.fork import Forkable
from podlink.store.operations import Operation
from podlink.store.topology.circuit import Circuit

_LIVELY_SECONDS: Final = 0.05
"""A connection that was idle for longer is checked before it is used."""

_LOOK_SECONDS: Final = 0.05
"""How often a call that waits for a connection looks for permits that were dropped."""

CLOSED: Final = Lost(ConnectionError("the executor was closed"), sent=False)

Report = Callable[[Sequence[Operation[Any]], Sequence[Any], float], None]
"""Called with operations that ended, their results, and the seconds that they took."""


class _Permit:
    """The right to one connection."""

    __slots__ = ("__weakref__",)


class _Permits:
    """As many permits as connections may be open.

    A call can be interrupted between any two steps: by a signal handler that raises, or by the end of a greenlet. It
    may then drop its permit instead of giving it back. A permit that nobody has any more is replaced. So none is ever
    lost, and no code has to run at the right moment for that.
    """

    def __init__(self, count: int) -> None:
        # Looked up by its module, which is where gevent puts its own.
        self._free: queue.SimpleQueue[_Permit] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._issued: list[Callable[[], _Permit | None]] = [_nobody] * count

    def take(self, timeout_seconds: float) -> _Permit | None:
        """Return a permit, or None if there is none in time."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            with suppress(queue.Empty):
                return self._free.get_nowait()
            self._replace_dropped()
            with suppress(queue.Empty):
                return self._free.get(timeout=max(0.0, min(_LOOK_SECONDS, deadline - time.monotonic())))
            if time.monotonic() >= deadline:
                return None

    def give_back(self, permit: _Permit) -> None:
        """Let another call have it."""
        self._free.put(permit)

    def _replace_dropped(self) -> None:
        with self._lock:
            for number, issued in enumerate(self._issued):
                if issued() is None:
                    permit = _Permit()
                    self._issued[number] = weakref.ref(permit)
                    self._free.put(permit)


def _nobody() -> None:
    """Stand for a permit that was not issued yet."""


class Server(Forkable):
    """One server, and the connections to it, which threads share."""

    def __init__(self, client: redis.Redis, timeout_seconds: float, report: Report, mode: SendMode) -> None:
        """Connect to nothing yet.

        Args:
            client: of redis-py, which says where and how to connect, and how many connections there may be. Its own are
                left to others.
            timeout_seconds: of waiting for a free connection.
            report: told of every operation that ended.
            mode: how operations are sent.
        """
        self._pool = client.connection_pool
        self._timeout_seconds = timeout_seconds
        self._report = report
        self._mode = mode
        self._circuit = Circuit()
        self._cause: BaseException = ConnectionError("not tried yet")
        self._closed = False
        super().__init__()

    def forget_threads(self) -> None:
        """All connections are free, and none is there."""
        self._permits = _Permits(self._pool.max_connections)
        self._idle: deque[tuple[Connection, float]] = deque()

    def run(self, many: Sequence[Operation[Any]], *, ordered: bool = True) -> list[Any]:
        """Run operations; each has its own result, or PodLinkError, in its own place.

        Args:
            many: the operations.
            ordered: whether they keep their order.
        """
        started = time.perf_counter()
        steps = exchange(many, self._mode._replace(ordered=ordered, merged=self._mode.merged and not ordered))
        try:
            requests = next(steps)
            while True:
                requests = steps.send(self._exchange(requests))
        except StopIteration as end:
            results: list[Any] = end.value
        self._report(many, results, time.perf_counter() - started)
        return results

    def close(self) -> None:
        """Close the connections, for good; one that is in use when that is done."""
        self._closed = True
        self._leave()

    def _leave(self) -> None:
        """Close the idle connections."""
        with suppress(IndexError):
            while True:
                self._idle.pop()[0].disconnect()

    def _exchange(self, requests: list[Request]) -> list[Reply]:
        """Send requests down one connection and collect as many replies as come."""
        replies: list[Reply] = []
        if self._closed:
            return [CLOSED] * len(requests)
        if left := self._circuit.seconds_left:
            cause: Exception = ConnectionError(f"{self._cause} (tried again in {left:.1f} s)")
            return [Lost(cause, sent=False)] * len(requests)
        permit = self._permits.take(self._timeout_seconds)
        if permit is None:
            cause = timeout_error(self._timeout_seconds, sent=False)
            return [Lost(cause, sent=False)] * len(requests)
        sent = False
        try:
            connection = self._connection()
            whole = False
            try:
                packed = pack(requests)
                sent = True
                connection.send_packed_command([packed])
                while len(replies) < len(requests):
                    try:
                        replies.append(connection.read_response())
                    except ResponseError as error:
                        replies.append(located(error, getattr(connection, "host", "")))
                # A primary that became a replica stays one: the next call has to look for the new primary.
                whole = not any(isinstance(reply, ReadOnlyError) for reply in replies)
            finally:
                if whole:
                    self._idle.append((connection, time.monotonic()))
                else:
                    connection.disconnect()
                if not whole or self._closed:
                    # What befell this connection is likely to befall the others.
                    self._leave()
        except (RedisError, OSError) as error:
            if not sent:
                self._circuit.failed()
                self._cause = error
            replies += [Lost(error, sent=sent)] * (len(requests) - len(replies))
        finally:
            self._permits.give_back(permit)
        return replies

    def _connection(self) -> Connection:
        """A connection that is ready to send.

        Raises:
            RedisError, OSError: the server cannot be reached.
        """
        with suppress(IndexError):
            while True:
                idle, since = self._idle.pop()
                if time.monotonic() - since < _LIVELY_SECONDS or _lives(idle):
                    return idle
                idle.disconnect()
        connection: Connection = self._pool.connection_class(
            **self._pool.connection_kwargs | {"retry": Retry(NoBackoff(), 0)}
        )
        try:
            connection.connect()
        except BaseException:
            connection.disconnect()
            raise
        self._circuit.succeeded()
        return connection


def _lives(connection: Connection) -> bool:
    """Whether a connection that was idle is still open; nothing is to be read there, unless it was closed."""
    try:
        return not connection.can_read()
    except (RedisError, OSError):
        return False
