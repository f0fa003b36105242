"""The blocking executor: the same operations for threads. Why it talks to connections, `executor` says."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError, RedisError, ResponseError
from redis.retry import Retry

from podlink.domain.errors import InvalidArgument, PodLinkError
from podlink.store import calls, operations
from podlink.store.calls import Conversation, Lost, Observer, Reply, Request
from podlink.store.operations import Operation

P = ParamSpec("P")
T = TypeVar("T")


def _runs(build: Callable[P, Operation[T]]) -> Callable[Concatenate["StatefulExecutor", P], T]:
    """The method that runs what a builder returns; signature and docstring are the builder's."""

    def method(self: "StatefulExecutor", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.run(build(*args, **kwargs))

    return calls.described_by(build, method)


class StatefulExecutor:
    """Reads and writes the link map in Redis, one atomic round trip a call, blocking the thread that calls.

    Safe to share between threads. Use it as `with`, or call `close`.

    Every method raises `InvalidArgument` before any I/O, `RedisUnavailable` (its `maybe_applied` says whether the call
    may have been applied) and `ScriptError` (it names the script). Nothing is retried, except a script the server did
    not know, which has therefore not run.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        timeout_seconds: float = calls.DEFAULT_TIMEOUT_SECONDS,
        on_call: Observer | None = None,
    ) -> None:
        """Use a redis-py client, whose connections and settings apply; closing it stays with the caller.

        Args:
            client: a `redis.Redis`, for example of `Sentinel.master_for`. Its `socket_timeout` bounds every wait for
                the server.
            timeout_seconds: of waiting for a free connection.
            on_call: told about every call, see `podlink.store.calls.Observer`.

        Raises:
            InvalidArgument: client is something else, or timeout_seconds is not above 0.
        """
        if not isinstance(client, redis.Redis):
            raise InvalidArgument(
                f"client must be a redis.Redis, got {type(client).__module__}.{type(client).__qualname__};"
                " for a redis.asyncio.Redis use podlink.StatefulExecutor",
                argument="client",
            )
        calls.check_timeout(timeout_seconds)
        self._client = client
        self._pool = client.connection_pool
        self._owns_client = False
        self._timeout_seconds = timeout_seconds
        self._on_call = on_call
        # A pool raises when all its connections are in use; here the call waits for one.
        self._free = threading.Semaphore(self._pool.max_connections)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        timeout_seconds: float = calls.DEFAULT_TIMEOUT_SECONDS,
        max_connections: int = calls.DEFAULT_CONNECTIONS,
        on_call: Observer | None = None,
        **options: Any,
    ) -> Self:
        """Connect to one Redis or Valkey server, at the first call.

        Args:
            url: `redis://[user:password@]host[:port][/db]`, `rediss://...` for TLS, or `unix:///path/to/socket`.
            timeout_seconds: of each wait: for a free connection, for connecting, for a reply.
            max_connections: how many connections are opened at most; further calls wait for a free one.
            on_call: told about every call, see `podlink.store.calls.Observer`.
            options: of redis-py's connections, for example `ssl_ca_certs`.

        Raises:
            InvalidArgument: the URL's scheme is another one, or a part of it cannot be read, or an option is unknown.
        """
        settings: dict[str, Any] = {
            "max_connections": max_connections,
            "socket_timeout": timeout_seconds,
            "socket_connect_timeout": timeout_seconds,
            "retry": Retry(NoBackoff(), 0),
        }
        pool = calls.open_pool(redis.ConnectionPool, url, settings | options)
        executor = cls(redis.Redis.from_pool(pool), timeout_seconds=timeout_seconds, on_call=on_call)
        executor._owns_client = True
        return executor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, unless they belong to a client that was passed in."""
        if self._owns_client:
            self._client.close()

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

        Returns:
            For each operation, in its place, its own result or its own error.
        """
        started = time.perf_counter()
        results = self._hold(calls.conversation(many))
        calls.report(many, results, time.perf_counter() - started, self._on_call)
        return results

    def _hold(self, conversation: Conversation[T]) -> T:
        try:
            requests = next(conversation)
            while True:
                requests = conversation.send(self._exchange(requests))
        except StopIteration as end:
            result: T = end.value
            return result

    def _exchange(self, requests: list[Request]) -> list[Reply]:
        """Send requests down one connection and collect as many replies as come."""
        replies: list[Reply] = []
        if not self._free.acquire(timeout=self._timeout_seconds):
            cause = TimeoutError(f"no connection within {self._timeout_seconds:g} seconds")
            return [Lost(cause, sent=False)] * len(requests)
        sent = False
        try:
            connection = self._pool.get_connection()
            try:
                packed = connection.pack_commands(requests)  # type: ignore[no-untyped-call]
                sent = True
                connection.send_packed_command(packed)  # type: ignore[no-untyped-call]
                while len(replies) < len(requests):
                    try:
                        replies.append(connection.read_response())
                    except ResponseError as error:
                        replies.append(error)
                if any(isinstance(reply, ReadOnlyError) for reply in replies):
                    # The primary became a replica, and stays one: the next call has to look for the new primary.
                    connection.disconnect()  # type: ignore[no-untyped-call]
            finally:
                self._pool.release(connection)
        except (RedisError, OSError) as error:
            replies += [Lost(error, sent)] * (len(requests) - len(replies))
        finally:
            self._free.release()
        return replies

    set_service_state = _runs(operations.set_service_state)
    get_service_state = _runs(operations.get_service_state)
    get_service = _runs(operations.get_service)
    set_workload_state = _runs(operations.set_workload_state)
    get_workload_state = _runs(operations.get_workload_state)
    get_workload_states = _runs(operations.get_workload_states)
    set_linked_pod = _runs(operations.set_linked_pod)
    try_set_linked_pod = _runs(operations.try_set_linked_pod)
    set_linked_pod_if_absent = _runs(operations.set_linked_pod_if_absent)
    compute_linked_pod_if_absent = _runs(operations.compute_linked_pod_if_absent)
    get_linked_pod = _runs(operations.get_linked_pod)
    get_linked_pod_if_persist = _runs(operations.get_linked_pod_if_persist)
    get_linked_pods = _runs(operations.get_linked_pods)
    remove_linked_pod = _runs(operations.remove_linked_pod)
    remove_linked_pod_with_id = _runs(operations.remove_linked_pod_with_id)
    get_linked_services = _runs(operations.get_linked_services)
