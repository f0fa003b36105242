"""The primaries of a Redis Cluster, as the blocking executor uses them."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis
from redis import RedisCluster
from redis.cluster import ClusterNode

from podlink.domain.errors import RedisUnavailable
from podlink.store.batching.outcomes import Lost, no_map, outcome, unavailable
from podlink.store.blocking.fork import Forkable
from podlink.store.blocking.server import CLOSED, Server
from podlink.store.operations import Operation
from podlink.store.topology import cluster


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


class ClusterServers(Forkable):
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
        steps = cluster.rounds(many, self._timeout_seconds, ordered=ordered)
        try:
            step = next(steps)
            while True:
                step = steps.send(self._take(step))
        except StopIteration as end:
            results: list[Any] = end.value
            return results
        except cluster.UNREACHABLE as error:
            # Of redis-py, about its map. How far the calls had come is not known.
            return [outcome(operation, Lost(error, sent=True)) for operation in many]

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
            return CLOSED
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
        return self._client or CLOSED

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
