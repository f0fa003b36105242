"""The servers that the blocking executor sends to: one, or the primaries of a cluster."""

import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Final

import redis
from redis import RedisCluster
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.connection import Connection
from redis.exceptions import ReadOnlyError, RedisError, ResponseError
from redis.retry import Retry

from podlink.domain.errors import RedisUnavailable
from podlink.store import cluster
from podlink.store.calls import Manner, Request, conversation, pack
from podlink.store.circuit import Circuit
from podlink.store.operations import Operation
from podlink.store.outcomes import Lost, Reply, no_map, outcome, timeout_error, unavailable

_LIVELY_SECONDS: Final = 0.05
"""A connection that was idle for longer is looked at before it is used."""

_CLOSED: Final = Lost(ConnectionError("the executor was closed"), sent=False)

Report = Callable[[Sequence[Operation[Any]], Sequence[Any], float], None]
"""Told of operations that ended, with their results and the seconds that took."""


class _Forkable(ABC):
    """Starts anew in a process that was forked, where the threads are missing that held locks and connections."""

    _living: ClassVar[weakref.WeakSet["_Forkable"]] = weakref.WeakSet()

    def __init__(self) -> None:
        self._living.add(self)
        self.forget_threads()

    @abstractmethod
    def forget_threads(self) -> None:
        """Hold what nobody else holds."""

    @classmethod
    def all_forget_threads(cls) -> None:
        """After a fork, in the child."""
        for each in cls._living:
            each.forget_threads()


os.register_at_fork(after_in_child=_Forkable.all_forget_threads)


class Server(_Forkable):
    """One server, and the connections to it, which threads share."""

    def __init__(self, client: redis.Redis, timeout_seconds: float, report: Report, manner: Manner) -> None:
        """Connect to nothing yet.

        Args:
            client: of redis-py, which says where and how to connect, and how many connections there may be. Its own are
                left to others.
            timeout_seconds: of waiting for a free connection.
            report: told of every operation that ended.
            manner: how operations are sent.
        """
        self._pool = client.connection_pool
        self._timeout_seconds = timeout_seconds
        self._report = report
        self._manner = manner
        self._circuit = Circuit()
        self._cause: BaseException = ConnectionError("not tried yet")
        self._closed = False
        super().__init__()

    def forget_threads(self) -> None:
        """All connections are free, and none is there."""
        self._free = threading.Semaphore(self._pool.max_connections)
        self._idle: deque[tuple[Connection, float]] = deque()

    def run(self, many: Sequence[Operation[Any]], *, ordered: bool = True) -> list[Any]:
        """Run operations; each has its own result, or PodLinkError, in its own place.

        Args:
            many: the operations.
            ordered: whether they keep their order.
        """
        started = time.perf_counter()
        talk = conversation(many, self._manner._replace(ordered=ordered, merged=self._manner.merged and not ordered))
        try:
            requests = next(talk)
            while True:
                requests = talk.send(self._exchange(requests))
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
            return [_CLOSED] * len(requests)
        if left := self._circuit.seconds_left:
            cause: Exception = ConnectionError(f"{self._cause} (tried again in {left:.1f} s)")
            return [Lost(cause, sent=False)] * len(requests)
        if not self._free.acquire(timeout=self._timeout_seconds):
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
                        replies.append(error)
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
            self._free.release()
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


class _Asking(threading.Thread):
    """Asks for a cluster's map, once.

    Attributes:
        error: why there is none.
        ended_at: monotonic time at which it was answered.
    """

    def __init__(self, ask: Callable[[], None]) -> None:
        super().__init__(name="podlink-cluster-map", daemon=True)
        self._ask = ask
        self.error: Exception | None = None
        self.ended_at = float("-inf")

    def run(self) -> None:
        try:
            self._ask()
        except Exception as error:  # noqa: BLE001 - whoever waits for the map is told
            self.error = error
        self.ended_at = time.monotonic()


class ClusterServers(_Forkable):
    """Runs operations on the servers that have their slots."""

    def __init__(
        self,
        connect: Callable[[], RedisCluster],
        make: Callable[[redis.Redis], Server],
        timeout_seconds: float,
        *,
        owned: bool,
    ) -> None:
        """Ask nobody yet.

        Args:
            connect: makes a client of redis-py, which asks for the cluster's map then; no call goes through it.
            make: makes the server of a client.
            timeout_seconds: of asking for the map, and of one call with all its redirections.
            owned: whether the client is to be closed here.
        """
        self._owned = owned
        self._connect = connect
        self._make = make
        self._timeout_seconds = timeout_seconds
        self._client: RedisCluster | None = None
        self._closed = False
        self._servers: dict[str, Server] = {}
        super().__init__()

    def forget_threads(self) -> None:
        """Nobody asks for the map."""
        # Servers are asked in turn, and each that hangs is waited for: no call is to wait for all of them.
        self._asking: _Asking | None = None
        self._lock = threading.Lock()

    def run(self, many: Sequence[Operation[Any]], *, ordered: bool = False) -> list[Any]:
        """Run operations; each has its own result, or PodLinkError, in its own place.

        Args:
            many: the operations.
            ordered: whether those of one uid, or of one service, keep their order.
        """
        talk = cluster.rounds(many, self._timeout_seconds, ordered=ordered)
        try:
            step = next(talk)
            while True:
                step = talk.send(self._take(step))
        except StopIteration as end:
            results: list[Any] = end.value
            return results

    def nodes(self, *, anew: bool) -> list[str]:
        """Addresses of the primaries.

        Args:
            anew: ask for the cluster's map, even if there is one.

        Raises:
            RedisUnavailable: no server of the cluster could be asked.
        """
        client = self._learn(anew=anew)
        if isinstance(client, Lost):
            raise unavailable("nodes", client.cause, maybe_applied=False)
        return [node.name for node in client.get_primaries()]

    def close(self) -> None:
        """Close what was opened here, for good."""
        with self._lock:
            self._closed = True
            servers = list(self._servers.values())
        for server in servers:
            server.close()
        self._close_client()

    def _take(self, step: cluster.Round) -> list[Any]:
        client = self._learn()
        if isinstance(client, Lost):
            return [outcome(operation, client) for operation, _ in step.asked]
        for moved in step.moved:
            client.nodes_manager.move_slot(moved)
        if step.pause_seconds:
            self._refresh()
            time.sleep(step.pause_seconds)
        answers: list[Any] = [None] * len(step.asked)
        together: dict[str, list[int]] = {}
        for slot, (operation, ask) in enumerate(step.asked):
            if ask is not None:
                server = self._server(client, f"{ask.host}:{ask.port}")
                answers[slot] = server.run([cluster.ASKING, operation])[1]
            else:
                together.setdefault(_owner(client, operation), []).append(slot)
        for address, slots in together.items():
            own = self._server(client, address).run([step.asked[slot][0] for slot in slots], ordered=step.ordered)
            for slot, answer in zip(slots, own, strict=True):
                answers[slot] = answer
        if any(isinstance(answer, RedisUnavailable) for answer in answers):
            # A server is away, and others may have its slots by now.
            self._refresh()
        return answers

    def _learn(self, *, anew: bool = False) -> RedisCluster | Lost:
        """The client, which has a map; or why there is none.

        Args:
            anew: ask for it, even if there is one.
        """
        if self._closed:
            return _CLOSED
        if self._client is not None and not anew:
            return self._client
        asking = self._refresh(now=anew)
        asking.join(self._timeout_seconds)
        if asking.is_alive():
            return Lost(no_map(self._timeout_seconds), sent=False)
        if isinstance(asking.error, cluster.UNREACHABLE):
            return Lost(asking.error, sent=False)
        if asking.error is not None:
            self._asking = None  # each caller gets an error of its own
            raise asking.error
        return self._client or _CLOSED

    def _refresh(self, *, now: bool = False) -> _Asking:
        """Ask for the cluster's map in the background, unless that was done a moment ago.

        Args:
            now: also if it was.
        """
        with self._lock:
            asking = self._asking
            fresh = asking is not None and not now and time.monotonic() - asking.ended_at < cluster.FRESH_SECONDS
            if asking is None or not (asking.is_alive() or fresh):
                asking = self._asking = _Asking(self._ask)
                asking.start()
            return asking

    def _ask(self) -> None:
        if self._client is None:
            self._client = self._connect()
        else:
            self._client.nodes_manager.initialize()
        if self._closed:
            self._close_client()

    def _close_client(self) -> None:
        if self._client is not None and self._owned:
            self._client.close()

    def _server(self, client: RedisCluster, address: str) -> Server:
        with self._lock:
            if address not in self._servers:
                host, _, port = address.rpartition(":")
                node = client.get_node(node_name=address) or ClusterNode(host, int(port))
                self._servers[address] = self._make(client.get_redis_connection(node))
                if self._closed:
                    self._servers[address].close()
            return self._servers[address]


def _owner(client: RedisCluster, operation: Operation[Any]) -> str:
    if operation.shape.node:
        return operation.shape.node
    keys = operation.keys
    node = client.get_node_from_key(keys[0]) if keys else client.get_primaries()[0]
    address: str = node.name
    return address
