"""The asyncio executor: runs operations over a pool of connections.

What the tasks of an event loop ask for at the same time goes out together (`mailbox`, `merging`).

It talks to connections rather than through a client's `execute_command` or pipeline, for two reasons. redis-py resends
what failed on a broken connection, as often as its retry policy says, and a script may have run the first time; here a
lost connection is reported. And a pipeline that breaks half way keeps the answers that did arrive.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import hiredis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from podlink.domain.errors import InvalidArgument, PodLinkError
from podlink.store import calls, operations
from podlink.store.calls import Conversation, Lost, Observer, Reply, Request
from podlink.store.mailbox import Mailbox
from podlink.store.operations import Operation

P = ParamSpec("P")
T = TypeVar("T")


def _runs(build: Callable[P, Operation[T]]) -> Callable[Concatenate["StatefulExecutor", P], Coroutine[Any, Any, T]]:
    """The method that runs what a builder returns; signature and docstring are the builder's."""

    async def method(self: "StatefulExecutor", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.run(build(*args, **kwargs))

    return calls.described_by(build, method)


class StatefulExecutor:
    """Reads and writes the link map in Redis, one atomic round trip a call.

    Safe to share between any number of tasks of one event loop. Use it as `async with`, or call `aclose`.

    Every method raises `InvalidArgument` before any I/O, `RedisUnavailable` (its `maybe_applied` says whether the call
    may have been applied) and `ScriptError` (it names the script). Nothing is retried, except a script the server did
    not know, which has therefore not run.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        *,
        timeout_seconds: float = calls.DEFAULT_TIMEOUT_SECONDS,
        on_call: Observer | None = None,
    ) -> None:
        """Use a redis-py client, whose connections and settings apply; closing it stays with the caller.

        Args:
            client: a `redis.asyncio.Redis`, for example of `Sentinel.master_for`.
            timeout_seconds: of one call or one pipeline, waiting for a free connection included.
            on_call: told about every call, see `podlink.store.calls.Observer`.

        Raises:
            InvalidArgument: client is something else, or timeout_seconds is not above 0.
        """
        if not isinstance(client, redis.asyncio.Redis):
            raise InvalidArgument(
                f"client must be a redis.asyncio.Redis, got {type(client).__module__}.{type(client).__qualname__};"
                " for a redis.Redis use podlink.sync.StatefulExecutor",
                argument="client",
            )
        calls.check_timeout(timeout_seconds)
        self._client = client
        self._pool = client.connection_pool
        self._owns_client = False
        self._timeout_seconds = timeout_seconds
        self._on_call = on_call
        # A pool raises when all its connections are in use; here the call waits for one.
        self._free = asyncio.Semaphore(self._pool.max_connections)
        self._mailbox = Mailbox(self._run_merged, timeout_seconds, self._report)

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
            timeout_seconds: of one call or one pipeline, waiting for a free connection and connecting included.
            max_connections: how many connections are opened at most; further calls wait for a free one.
            on_call: told about every call, see `podlink.store.calls.Observer`.
            options: of redis-py's connections, for example `ssl_ca_certs`.

        Raises:
            InvalidArgument: the URL's scheme is another one, or a part of it cannot be read, or an option is unknown.
        """
        settings: dict[str, Any] = {
            "max_connections": max_connections,
            # One timer around the whole call instead of redis-py's own for every write and every reply.
            "socket_timeout": None,
            "socket_connect_timeout": timeout_seconds,
            "retry": Retry(NoBackoff(), 0),
        }
        pool = calls.open_pool(redis.asyncio.ConnectionPool, url, settings | options)
        executor = cls(redis.asyncio.Redis.from_pool(pool), timeout_seconds=timeout_seconds, on_call=on_call)
        executor._owns_client = True
        return executor

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Wait for the single calls under way, then close the connections, unless they belong to a client passed in."""
        await self._mailbox.drain()
        if self._owns_client:
            await self._client.aclose()

    async def run(self, operation: Operation[T]) -> T:
        """Run one operation.

        Raises:
            RedisUnavailable: no answer; `maybe_applied` says whether the operation may have been applied.
            ScriptError: the server refused it, or its reply makes no sense.
        """
        if operation.target and not self._mailbox.idle:
            return await self._mailbox.post(operation)
        with self._mailbox.one_alone():
            (result,) = await self.run_many((operation,))
        if isinstance(result, PodLinkError):
            raise result
        return result

    async def run_many(self, many: Sequence[Operation[T]]) -> list[T | PodLinkError]:
        """Run many operations in one pipeline, in order, but not as a transaction.

        Returns:
            For each operation, in its place, its own result or its own error.
        """
        started = time.perf_counter()
        conversation = calls.conversation(many)
        try:
            requests = next(conversation)
        except StopIteration as end:
            results: list[T | PodLinkError] = end.value
        else:
            results = await self._go_on(conversation, await self._exchange(lambda: requests))
        self._report(many, results, time.perf_counter() - started)
        return results

    async def _run_merged(self, board: Callable[[], Sequence[Operation[T]]]) -> list[T | PodLinkError]:
        """Run those operations that are still wanted when a connection is there."""
        started = time.perf_counter()
        many: list[Operation[T]] = []
        conversation = calls.merged_conversation(many)

        def requests() -> list[Request]:
            many.extend(board())
            return next(conversation) if many else []

        replies = await self._exchange(requests)
        results = await self._go_on(conversation, replies) if many else []
        self._report(many, results, time.perf_counter() - started)
        return results

    def _report(self, many: Sequence[Operation[T]], results: Sequence[T | PodLinkError], seconds: float) -> None:
        calls.report(many, results, seconds, self._on_call)

    async def _go_on(self, conversation: Conversation[T], replies: list[Reply]) -> T:
        try:
            while True:
                requests = conversation.send(replies)
                replies = await self._exchange(functools.partial(list, requests))
        except StopIteration as end:
            result: T = end.value
            return result

    async def _exchange(self, board: Callable[[], list[Request]]) -> list[Reply]:
        """Send requests down one connection and collect as many replies as come.

        Args:
            board: returns the requests; called once, when the connection is there or there will be none.
        """
        requests: list[Request] | None = None
        replies: list[Reply] = []
        sent = False
        cause: Exception
        try:
            async with asyncio.timeout(self._timeout_seconds), self._free:
                connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
                try:
                    requests = board()
                    # Its stub says tuple[T] where a tuple of any length is meant.
                    packed = b"".join(hiredis.pack_command(request) for request in requests)  # type: ignore[arg-type]
                    sent = True
                    await connection.send_packed_command(packed)
                    while len(replies) < len(requests):
                        try:
                            # As bytes, whatever the client was made with: one value that is no text is one call's own.
                            replies.append(await connection.read_response(disable_decoding=True))
                        except ResponseError as error:
                            replies.append(error)
                    if any(map(calls.tells_of_replica, replies)):
                        # The primary became a replica, and stays one: the next call has to look for the new primary.
                        await connection.disconnect()
                finally:
                    await self._pool.release(connection)
        except TimeoutError:
            cause = calls.timeout_error(self._timeout_seconds, sent=sent)
        except (RedisError, OSError) as error:
            cause = error
        else:
            return replies
        if requests is None:
            requests = board()
        return replies + [Lost(cause, sent)] * (len(requests) - len(replies))

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
