"""The asyncio executor.

Calls that the tasks of an event loop make at the same time are sent together (`queue`, `batching.merging`). All tasks
share one connection to each server (`connection`). redis-py makes and secures the connections, but its clients do not
send, for two reasons. First, they send a call again after the connection broke, and the script may have run the first
time. Here, a lost connection is reported. Second, a call through them costs several times as much.
"""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

import redis.asyncio
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from podlink.domain.errors import InvalidArgument, PodLinkError, WrongEventLoop
from podlink.store import operations, options
from podlink.store.aio.cache import LinkCache
from podlink.store.aio.cluster import ClusterServers
from podlink.store.aio.queue import CallQueue, ServerQueues
from podlink.store.aio.server import Connect, Server
from podlink.store.batching.exchange import Request, SendMode
from podlink.store.batching.merging import BATCH_SIZE
from podlink.store.batching.outcomes import Observer, outcome, report
from podlink.store.operations import Bulk, Operation
from podlink.store.operations.links import read_link
from podlink.store.options import Durability
from podlink.store.topology import urls
from podlink.store.topology.health import Health

P = ParamSpec("P")
T = TypeVar("T")

_CACHE_ENTRIES: Final = 100_000
_TRACKING: Final[tuple[Request, ...]] = (("HELLO", 3), ("CLIENT", "TRACKING", "ON"))


def _runs(build: Callable[P, Operation[T]]) -> Callable[Concatenate["StatefulExecutor", P], Coroutine[Any, Any, T]]:
    """The method that runs what a builder returns; signature and docstring are the builder's."""

    async def method(self: "StatefulExecutor", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._start(build(*args, **kwargs))

    return options.described_by(build, method)


def _runs_all(build: Callable[P, Bulk[T]]) -> Callable[Concatenate["StatefulExecutor", P], Coroutine[Any, Any, T]]:
    """The same for a bulk method."""

    async def method(self: "StatefulExecutor", /, *args: P.args, **kwargs: P.kwargs) -> T:
        bulk = build(*args, **kwargs)
        return bulk.collect(await self._run_all(bulk.operations))

    return options.described_by(build, method)


class StatefulExecutor:
    """Reads and writes the link map in Redis, one atomic round trip a call.

    Safe to share between any number of tasks of one event loop. Use it as `async with`, or call `aclose`.

    Every method raises `InvalidArgument` before any I/O, `RedisUnavailable` (its `maybe_applied` says whether the call
    may have been applied) and `ScriptError` (it names the script); bulk methods also raise `PartialFailure`. Nothing is
    retried, except a script the server did not know, and what a cluster's server sent elsewhere; neither has run.
    A call from another event loop than that of the first call raises `WrongEventLoop`.

    On Redis Cluster a link and the load that it puts on its pod live on two servers, so that a call takes two round
    trips, and one that picks a pod three; see docs/limitations.md.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis | redis.asyncio.RedisCluster,
        *,
        timeout_seconds: float = options.DEFAULT_TIMEOUT_SECONDS,
        cache: bool = False,
        cache_entries: int = _CACHE_ENTRIES,
        durability: Durability = "primary",
        replicas: int = 1,
        on_call: Observer | None = None,
    ) -> None:
        """Connect as a redis-py client does, at the first call; closing the client stays with the caller.

        Args:
            client: says where and how to connect; for example of `Sentinel.master_for`, or a `RedisCluster`.
            timeout_seconds: of one call or one pipeline, connecting included.
            cache: keep links that `get_linked_pod` has read, until the server says that they changed. A cached link is
                stale for the time such a message travels, or for two and a half times the timeout while the connection
                is dead without a word.
            cache_entries: links kept at most.
            durability: "replicated": a write returns when replicas have it, else it raises `NotReplicated`.
            replicas: how many must. Sentinels may promote one that is a moment behind another, so only the number of
                all replicas makes sure that a failover loses nothing that was confirmed.
            on_call: told about every call, see `podlink.store.batching.outcomes.Observer`.

        Raises:
            InvalidArgument: an argument is something else.
        """
        if not isinstance(client, redis.asyncio.Redis | redis.asyncio.RedisCluster):
            raise InvalidArgument(
                "client must be a redis.asyncio.Redis or RedisCluster, got"
                f" {type(client).__module__}.{type(client).__qualname__};"
                " for a redis.Redis use podlink.sync.StatefulExecutor",
                argument="client",
            )
        options.check_timeout(timeout_seconds)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client = client
        self._owns_client = False
        self._timeout_seconds = timeout_seconds
        self._on_call = on_call
        self._wait = options.confirmation(durability, replicas, timeout_seconds)
        self._cache = LinkCache(options.checked_size(cache_entries)) if cache else None
        self._queues: ServerQueues | None = None
        self._cluster: ClusterServers | None = None
        if isinstance(client, redis.asyncio.RedisCluster):
            self._cluster = ClusterServers(client, self._make_queues, timeout_seconds)
        else:
            self._queues = self._make_queues(functools.partial(_connection_like, client))

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        timeout_seconds: float = options.DEFAULT_TIMEOUT_SECONDS,
        cache: bool = False,
        cache_entries: int = _CACHE_ENTRIES,
        durability: Durability = "primary",
        replicas: int = 1,
        on_call: Observer | None = None,
        **connection_options: Any,
    ) -> Self:
        """Connect to Redis or Valkey, at the first call.

        Args:
            url: one server: `redis://[user:password@]host[:port][/db]`, `rediss://...` for TLS, or
                `unix:///path/to/socket`; the primary that Sentinels name:
                `redis+sentinel://[user:password@]host:port,host:port/service[/db]`, with `sentinel_username` and
                `sentinel_password` as query parameters where Sentinels ask for them; a cluster:
                `redis+cluster://[user:password@]host:port,host:port`. The last two begin with `rediss+` for TLS.
            timeout_seconds: of one call or one pipeline, connecting included.
            cache: see the constructor.
            cache_entries: see the constructor.
            durability: see the constructor.
            replicas: see the constructor.
            on_call: told about every call, see `podlink.store.batching.outcomes.Observer`.
            connection_options: for redis-py's connections, for example `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`.

        Raises:
            InvalidArgument: the URL's scheme is another one, or a part of it cannot be read, or an option is unknown.
        """
        options.check_timeout(timeout_seconds)
        settings: dict[str, Any] = {
            "socket_timeout": timeout_seconds,
            "socket_connect_timeout": timeout_seconds,
            "retry": Retry(NoBackoff(), 0),
        }
        executor = cls(
            urls.open_client(urls.ASYNCIO, url, settings | connection_options),
            timeout_seconds=timeout_seconds,
            cache=cache,
            cache_entries=cache_entries,
            durability=durability,
            replicas=replicas,
            on_call=on_call,
        )
        executor._owns_client = True
        return executor

    async def __aenter__(self) -> Self:
        self._check_loop()
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Wait for the calls under way, and close the connections."""
        self._check_loop()
        if self._cluster is not None:
            await self._cluster.aclose()
        if self._queues is not None:
            await self._queues.aclose()
        if self._owns_client:
            sentinel = getattr(getattr(self._client, "connection_pool", None), "sentinel_manager", None)
            if sentinel is not None:
                await sentinel.aclose()
            await self._client.aclose()

    async def run(self, operation: Operation[T]) -> T:
        """Run one operation.

        Raises:
            RedisUnavailable: no answer; `maybe_applied` says whether the operation may have been applied.
            ScriptError: the server refused it, or its reply makes no sense.
        """
        return await self._start(operation)

    async def run_many(self, many: Sequence[Operation[T]]) -> list[T | PodLinkError]:
        """Run many operations in one pipeline, in order, but not as a transaction.

        On Redis Cluster the order holds among operations of one uid, or of one service.
        Where another client flushes the scripts in the middle of it, calls of these scripts come last.

        Returns:
            For each operation, in its place, its own result or its own error.
        """
        self._check_loop()
        if not any(operation.shape.target for operation in many):
            return [outcome(operation, ()) for operation in many]
        if self._queues is not None:
            return await self._queues.of(many).submit_together(many)
        return await self._servers.run(many, ordered=True)

    async def nodes(self, *, anew: bool = False) -> list[str | None]:
        """Where keys are: the addresses of a cluster's primaries, for operations that name one; else just None.

        Args:
            anew: ask the cluster, so that those are among them to which no call has gone yet.

        Raises:
            RedisUnavailable: no server of the cluster could be asked.
        """
        self._check_loop()
        if self._cluster is None:
            return [None]
        return [*await self._cluster.nodes(anew=anew)]

    def health(self) -> Health:
        """How the connections are, at this moment."""
        servers = self._cluster or self._queues
        return servers.health() if servers is not None else Health()

    async def _run_all(self, many: Sequence[Operation[Any]]) -> list[Any]:
        """Run operations that have no order among them."""
        self._check_loop()
        if self._queues is None:
            return await self._servers.run(many)
        # What waits for replicas waits once.
        size = max(1, len(many)) if self._wait else BATCH_SIZE
        parts = [many[start : start + size] for start in range(0, len(many), size)]
        futures = [self._queues.of(part).submit_together(part, ordered=False) for part in parts]
        try:
            return [result for future in futures for result in await future]
        finally:
            for future in futures:
                future.cancel()  # of what was not sent yet, if this call is cancelled

    def _check_loop(self) -> None:
        """Bind the executor to the event loop of its first call. Refuse every other one."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise WrongEventLoop(
                    "this executor belongs to another event loop, that of its first call: make an executor for each"
                    " event loop (each asyncio.run has its own), or use podlink.sync.StatefulExecutor from threads"
                )
            self._loop = loop

    def _start(self, operation: Operation[T]) -> Awaitable[T]:
        self._check_loop()
        if not operation.shape.target:
            return _nothing_to_ask(operation)
        if self._queues is None:
            return self._servers.run_one(operation)
        queues = self._queues
        return (queues.writes if operation.shape.writes else queues.reads).submit(operation)

    @property
    def _servers(self) -> ClusterServers:
        if self._cluster is None:
            raise RuntimeError("there is one server, and it has a queue")
        return self._cluster

    def _make_queues(self, connect: Connect) -> ServerQueues:
        mode = SendMode(merged=self._cluster is None)
        cache = self._cache
        server = Server(connect, self._timeout_seconds)
        if cache is not None:
            server = Server(
                connect, self._timeout_seconds, handshake=_TRACKING, on_push=cache.hear, on_down=cache.clear
            )
        reads = CallQueue(server, self._timeout_seconds, self._report, mode)
        if not self._wait:
            return ServerQueues(reads, reads)
        # Where writes turn to another primary, reads have to follow: the old one may come back for a while.
        following = Server(connect, self._timeout_seconds, on_down=server.leave)
        waiting = mode._replace(wait=self._wait)
        return ServerQueues(reads, CallQueue(following, self._timeout_seconds, self._report, waiting))

    def _report(
        self, many: Sequence[Operation[T]], results: Sequence[T | PodLinkError], seconds: float
    ) -> Mapping[int, Exception]:
        if self._cache is not None:
            # Before their callers go on, who may read at once what they have written.
            self._cache.forget_written(many)
        return report(many, results, seconds, self._on_call)

    async def _get_linked_pod(self, namespace: str, uid: str, service: str) -> int | None:
        cache = self._cache
        if cache is None:
            return await self._start(operations.get_linked_pod(namespace, uid, service))
        try:
            entry = cache.entries.get((namespace, uid, service))
        except TypeError:  # something unhashable, which is refused below
            entry = None
        if entry is not None and entry[1] > time.monotonic():
            return entry[0]
        operation = read_link(namespace, uid, service)
        # As plain strings, which the server's messages name too.
        link = str(operation.shape.namespace), operation.uid, str(operation.shape.service)
        token, asked_at = cache.asks(link), time.monotonic()
        try:
            pod, ttl_ms = await self.run(operation)
        finally:
            still_true = cache.read_ended(link, token)
        if still_true:
            cache.keep(link, pod, ttl_ms, asked_at)
        return pod

    set_service_state = _runs(operations.set_service_state)
    get_service_state = _runs(operations.get_service_state)
    get_service = _runs(operations.get_service)
    set_workload_state = _runs(operations.set_workload_state)
    get_workload_state = _runs(operations.get_workload_state)
    get_workload_states = _runs(operations.get_workload_states)
    set_linked_pod = _runs(operations.set_linked_pod)
    set_linked_pods = _runs_all(operations.set_linked_pods)
    try_set_linked_pod = _runs(operations.try_set_linked_pod)
    try_set_linked_pods = _runs_all(operations.try_set_linked_pods)
    set_linked_pod_if_absent = _runs(operations.set_linked_pod_if_absent)
    set_linked_pods_if_absent = _runs_all(operations.set_linked_pods_if_absent)
    compute_linked_pod_if_absent = _runs(operations.compute_linked_pod_if_absent)
    compute_linked_pods_if_absent = _runs_all(operations.compute_linked_pods_if_absent)
    get_linked_pod = options.described_by(operations.get_linked_pod, _get_linked_pod)
    get_linked_pods = _runs_all(operations.get_linked_pods)
    get_linked_pod_if_persist = _runs(operations.get_linked_pod_if_persist)
    remove_linked_pod = _runs(operations.remove_linked_pod)
    remove_linked_pods = _runs_all(operations.remove_linked_pods)
    remove_linked_pod_with_id = _runs(operations.remove_linked_pod_with_id)
    remove_linked_pods_with_id = _runs_all(operations.remove_linked_pods_with_id)
    get_linked_services = _runs(operations.get_linked_services)


async def _nothing_to_ask(operation: Operation[T]) -> T:
    return operation.shape.parse(())


def _connection_like(client: redis.asyncio.Redis) -> AbstractConnection:
    """A connection as the client would make it, but one that never tries again by itself."""
    pool = client.connection_pool
    connection: AbstractConnection = pool.connection_class(**pool.connection_kwargs | {"retry": Retry(NoBackoff(), 0)})
    return connection
