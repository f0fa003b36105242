"""The blocking executor: the same operations for threads. Why it does not send through a client, `executor` says."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from podlink.domain.errors import InvalidArgument, PodLinkError
from podlink.store import operations, options
from podlink.store.batching.exchange import SendMode
from podlink.store.batching.outcomes import Observer, report
from podlink.store.blocking.cluster import ClusterServers
from podlink.store.blocking.server import Server
from podlink.store.operations import Bulk, Operation
from podlink.store.options import Durability
from podlink.store.topology import urls

P = ParamSpec("P")
T = TypeVar("T")

_DEFAULT_CONNECTIONS: Final = 50

_BULK: Final = 256
"""Operations of a bulk method that are sent in one go; more would only fill buffers."""


def _runs(build: Callable[P, Operation[T]]) -> Callable[Concatenate["StatefulExecutor", P], T]:
    """The method that runs what a builder returns; signature and docstring are the builder's."""

    def method(self: "StatefulExecutor", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.run(build(*args, **kwargs))

    return options.described_by(build, method)


def _runs_all(build: Callable[P, Bulk[T]]) -> Callable[Concatenate["StatefulExecutor", P], T]:
    """The same for a bulk method."""

    def method(self: "StatefulExecutor", /, *args: P.args, **kwargs: P.kwargs) -> T:
        bulk = build(*args, **kwargs)
        return bulk.collect(self._run_all(bulk.operations))

    return options.described_by(build, method)


class StatefulExecutor:
    """Reads and writes the link map in Redis, one atomic round trip a call, blocking the thread that calls.

    Safe to share between threads. Use it as `with`, or call `close`.

    Every method raises `InvalidArgument` before any I/O, `RedisUnavailable` (its `maybe_applied` says whether the call
    may have been applied) and `ScriptError` (it names the script); bulk methods also raise `PartialFailure`. Nothing is
    retried, except a script the server did not know, and what a cluster's server sent elsewhere; neither has run.
    """

    def __init__(
        self,
        client: redis.Redis | redis.RedisCluster | Callable[[], redis.RedisCluster],
        *,
        timeout_seconds: float = options.DEFAULT_TIMEOUT_SECONDS,
        durability: Durability = "primary",
        replicas: int = 1,
        on_call: Observer | None = None,
    ) -> None:
        """Connect as a redis-py client does, at the first call; closing the client stays with the caller.

        Args:
            client: says where and how to connect, and how many connections to a server there are at most; for example
                of `Sentinel.master_for`, or a `RedisCluster`, or a function that makes one at the first call (a
                RedisCluster connects when it is made). Its `socket_timeout` bounds every wait for the server.
            timeout_seconds: of waiting for a free connection, and for a cluster's map.
            durability: "replicated": a write returns when replicas have it, else it raises `NotReplicated`.
            replicas: how many must. Sentinels may promote one that is a moment behind another, so only the number of
                all replicas makes sure that a failover loses nothing that was confirmed.
            on_call: told about every call, see `podlink.store.batching.outcomes.Observer`.

        Raises:
            InvalidArgument: an argument is something else.
        """
        options.check_timeout(timeout_seconds)
        self._on_call = on_call
        self._owned: redis.Redis | None = None
        self._server: Server | None = None
        self._cluster: ClusterServers | None = None
        wait = options.confirmation(durability, replicas, timeout_seconds)
        make = functools.partial(Server, timeout_seconds=timeout_seconds, report=self._report)
        if isinstance(client, redis.Redis):
            self._server = make(client, mode=SendMode(merged=True, wait=wait))
        elif isinstance(client, redis.RedisCluster):
            apart = functools.partial(make, mode=SendMode(wait=wait))
            self._cluster = ClusterServers(lambda: client, apart, timeout_seconds, owned=False)
        elif callable(client):
            apart = functools.partial(make, mode=SendMode(wait=wait))
            self._cluster = ClusterServers(client, apart, timeout_seconds, owned=True)
        else:
            raise InvalidArgument(
                "client must be a redis.Redis or RedisCluster, got"
                f" {type(client).__module__}.{type(client).__qualname__};"
                " for a redis.asyncio.Redis use podlink.StatefulExecutor",
                argument="client",
            )

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        timeout_seconds: float = options.DEFAULT_TIMEOUT_SECONDS,
        max_connections: int = _DEFAULT_CONNECTIONS,
        durability: Durability = "primary",
        replicas: int = 1,
        on_call: Observer | None = None,
        **connection_options: Any,
    ) -> Self:
        """Connect to Redis or Valkey, at the first call.

        Args:
            url: as of `podlink.StatefulExecutor.from_url`: one server, a primary that Sentinels name, or a cluster.
            timeout_seconds: of each wait: for a cluster's map, for a free connection, for connecting, for a reply.
            max_connections: how many connections to a server are opened at most; further calls wait for a free one.
            durability: see the constructor.
            replicas: see the constructor.
            on_call: told about every call, see `podlink.store.batching.outcomes.Observer`.
            connection_options: for redis-py's connections, for example `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`.

        Raises:
            InvalidArgument: the URL's scheme is another one, or a part of it cannot be read, or an option is unknown.
        """
        if type(max_connections) is not int or max_connections < 1:
            raise InvalidArgument(
                f"max_connections must be an int above 0, got {max_connections!r}", argument="max_connections"
            )
        options.check_timeout(timeout_seconds)
        for name in ("cache", "cache_entries"):
            if name in connection_options:
                raise InvalidArgument(
                    f"{name} is of the asyncio executor, podlink.StatefulExecutor: this one asks Redis for every link",
                    argument=name,
                )
        settings: dict[str, Any] = {
            "max_connections": max_connections,
            "socket_timeout": timeout_seconds,
            "socket_connect_timeout": timeout_seconds,
            "retry": Retry(NoBackoff(), 0),
        }
        client = urls.open_client(urls.BLOCKING, url, settings | connection_options)
        executor = cls(
            client, timeout_seconds=timeout_seconds, durability=durability, replicas=replicas, on_call=on_call
        )
        executor._owned = client if isinstance(client, redis.Redis) else None
        return executor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, for good; a client that was passed in stays open."""
        if self._server is not None:
            self._server.close()
        if self._owned is not None:
            sentinel = getattr(self._owned.connection_pool, "sentinel_manager", None)
            for client in (*(sentinel.sentinels if sentinel else ()), self._owned):
                client.close()
        if self._cluster is not None:
            self._cluster.close()

    def run(self, operation: Operation[T]) -> T:
        """Run one operation.

        Raises:
            RedisUnavailable: no answer; `maybe_applied` says whether the operation may have been applied.
            ScriptError: the server refused it, or its reply makes no sense.
        """
        (result,) = self.run_many((operation,))
        if isinstance(result, PodLinkError):
            raise result
        return result

    def run_many(self, many: Sequence[Operation[T]]) -> list[T | PodLinkError]:
        """Run many operations in one pipeline, in order, but not as a transaction.

        On Redis Cluster the order holds among operations of one uid, or of one service.
        Where another client flushes the scripts in the middle of it, calls of these scripts come last.

        Returns:
            For each operation, in its place, its own result or its own error.
        """
        if self._server is not None:
            return self._server.run(many)
        return self._servers.run(many, ordered=True)

    def nodes(self, *, anew: bool = False) -> list[str | None]:
        """Where keys are: the addresses of a cluster's primaries, for operations that name one; else just None.

        Args:
            anew: ask the cluster, so that those are among them to which no call has gone yet.

        Raises:
            RedisUnavailable: no server of the cluster could be asked.
        """
        return [None] if self._cluster is None else [*self._cluster.nodes(anew=anew)]

    def _run_all(self, many: Sequence[Operation[Any]]) -> list[Any]:
        """Run operations that have no order among them."""
        if self._server is None:
            return self._servers.run(many)
        results: list[Any] = []
        for start in range(0, len(many), _BULK):
            results += self._server.run(many[start : start + _BULK], ordered=False)
        return results

    @property
    def _servers(self) -> ClusterServers:
        if self._cluster is None:
            raise RuntimeError("there is one server, and no cluster")
        return self._cluster

    def _report(self, many: Sequence[Operation[T]], results: Sequence[T | PodLinkError], seconds: float) -> None:
        raised = report(many, results, seconds, self._on_call)
        for error in raised.values():
            raise error

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
    get_linked_pod = _runs(operations.get_linked_pod)
    get_linked_pods = _runs_all(operations.get_linked_pods)
    get_linked_pod_if_persist = _runs(operations.get_linked_pod_if_persist)
    remove_linked_pod = _runs(operations.remove_linked_pod)
    remove_linked_pods = _runs_all(operations.remove_linked_pods)
    remove_linked_pod_with_id = _runs(operations.remove_linked_pod_with_id)
    remove_linked_pods_with_id = _runs_all(operations.remove_linked_pods_with_id)
    get_linked_services = _runs(operations.get_linked_services)
