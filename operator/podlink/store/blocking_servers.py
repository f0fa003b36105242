"""The servers that the blocking executor sends to: one, or the primaries of a cluster."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import redis
from redis import RedisCluster
from redis.cluster import ClusterNode
from redis.connection import Connection
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from podlink.domain.errors import RedisUnavailable
from podlink.store import cluster
from podlink.store.calls import Manner, Request, conversation, pack
from podlink.store.circuit import Circuit
from podlink.store.operations import Operation
from podlink.store.outcomes import Lost, Reply, outcome, unavailable

_LIVELY_SECONDS: Final = 0.05
"""A connection that was idle for longer is looked at before it is used."""

Report = Callable[[Sequence[Operation[Any]], Sequence[Any], float], None]
"""Told of operations that ended, with their results and the seconds that took."""


class Server:
    """One server, and a pool of connections to it that threads share."""

    def __init__(self, client: redis.Redis, timeout_seconds: float, report: Report, manner: Manner) -> None:
        """Connect to nothing yet.

        Args:
            client: of redis-py, whose pool is used.
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
        # A pool raises when all its connections are in use; here the call waits for one.
        self._free = threading.Semaphore(self._pool.max_connections)
        # Taking a connection from the pool and giving it back costs half as much as a call, so they stay here.
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
        """Give the idle connections back to the pool, closed."""
        with suppress(IndexError):
            while True:
                connection, _ = self._idle.pop()
                connection.disconnect()
                self._pool.release(connection)

    def _exchange(self, requests: list[Request]) -> list[Reply]:
        """Send requests down one connection and collect as many replies as come."""
        replies: list[Reply] = []
        if left := self._circuit.seconds_left:
            cause: Exception = ConnectionError(f"{self._cause} (tried again in {left:.1f} s)")
            return [Lost(cause, sent=False)] * len(requests)
        if not self._free.acquire(timeout=self._timeout_seconds):
            cause = TimeoutError(f"no connection within {self._timeout_seconds:g} seconds")
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
                self._idle.append((connection, time.monotonic()))
                if not whole:
                    # What befell this connection is likely to befall the others.
                    self.close()
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
            connection, since = self._idle.pop()
            if time.monotonic() - since < _LIVELY_SECONDS and connection.pid == os.getpid():
                return connection
            # The server may have closed it, or it belongs to the process that this one was forked from: the pool knows.
            self._pool.release(connection)
        connection = self._pool.get_connection()
        self._circuit.succeeded()
        return connection


class ClusterServers:
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
            timeout_seconds: of one call with all its redirections.
            owned: whether the client is to be closed here.
        """
        self._owned = owned
        self._connect = connect
        self._make = make
        self._timeout_seconds = timeout_seconds
        self._client: RedisCluster | None = None
        self._stale = False
        self._asked_at = float("-inf")
        self._servers: dict[str, Server] = {}
        self._refused: Exception | None = None
        self._lock = threading.Lock()
        self._asking = threading.Lock()

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
        if anew:
            self._asked_at = float("-inf")
        try:
            return [node.name for node in self._map(anew=anew).get_primaries()]
        except cluster.UNREACHABLE as error:
            raise unavailable("nodes", error, maybe_applied=False) from error

    def close(self) -> None:
        """Close what was opened here."""
        for server in self._servers.values():
            server.close()
        if self._client is not None and self._owned:
            self._client.close()

    def _take(self, step: cluster.Round) -> list[Any]:
        try:
            client = self._map()
            for moved in step.moved:
                client.nodes_manager.move_slot(moved)
            if step.pause_seconds:
                time.sleep(step.pause_seconds)
                client = self._map(anew=True)
        except cluster.UNREACHABLE as error:
            return [outcome(operation, Lost(error, sent=False)) for operation, _ in step.asked]
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
            self._stale = True
        return answers

    def _map(self, *, anew: bool = False) -> RedisCluster:
        """The client with a map that is not known to be out of date; one thread asks for it, others do not wait."""
        with self._lock:
            if self._client is None:
                self._client = self._first_client()
            client = self._client
        old = (anew or self._stale) and time.monotonic() - self._asked_at > cluster.FRESH_SECONDS
        if old and self._asking.acquire(blocking=False):
            try:
                client.nodes_manager.initialize()
                self._stale = False
            finally:
                # Behind the answer: where no server answers, asking them all takes longer than a map stays fresh.
                self._asked_at = time.monotonic()
                self._asking.release()
        return client

    def _first_client(self) -> RedisCluster:
        if self._refused is not None and time.monotonic() - self._asked_at < cluster.FRESH_SECONDS:
            raise self._refused
        try:
            return self._connect()
        except cluster.UNREACHABLE as error:
            self._refused = error
            self._asked_at = time.monotonic()
            raise

    def _server(self, client: RedisCluster, address: str) -> Server:
        with self._lock:
            if address not in self._servers:
                host, _, port = address.rpartition(":")
                node = client.get_node(node_name=address) or ClusterNode(host, int(port))
                self._servers[address] = self._make(client.get_redis_connection(node))
            return self._servers[address]


def _owner(client: RedisCluster, operation: Operation[Any]) -> str:
    if operation.shape.node:
        return operation.shape.node
    keys = operation.keys
    node = client.get_node_from_key(keys[0]) if keys else client.get_primaries()[0]
    address: str = node.name
    return address
