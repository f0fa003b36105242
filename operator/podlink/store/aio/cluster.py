"""The primaries of a Redis Cluster, as asyncio's executor sees them: which of them an operation goes to."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, cast

from redis.asyncio import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AskError

from podlink.domain.errors import PodLinkError, RedisUnavailable
from podlink.store.aio.queue import CallQueue, ServerQueues
from podlink.store.aio.server import Connect
from podlink.store.batching.outcomes import Lost, no_map, outcome, timeout_error, unavailable
from podlink.store.operations import Operation
from podlink.store.topology import cluster
from podlink.store.topology.health import Health, added

T = TypeVar("T")

_PATIENCE: Final = 1.05
"""Of a call, in time-outs: one step that is late says itself whether it was sent."""


class ClusterServers:
    """Runs operations on the servers that have their slots, each of which has a queue of its own."""

    def __init__(self, client: RedisCluster, make: Callable[[Connect], ServerQueues], timeout_seconds: float) -> None:
        """Ask nobody yet.

        Args:
            client: of redis-py, which knows the cluster's map; no call goes through it.
            make: makes the queues of a server.
            timeout_seconds: of one call with all its redirections.
        """
        self._map = client.nodes_manager
        self._client = client
        self._make = make
        self._timeout_seconds = timeout_seconds
        self._queues: dict[str, ServerQueues] = {}
        self._running: set[asyncio.Task[list[Any]]] = set()
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = float("-inf")

    async def run_one(self, operation: Operation[T]) -> T:
        """Run one operation; see `run`.

        Raises:
            PodLinkError: its own.
        """
        since = time.monotonic()
        if cluster.takes_one_step(operation) and self._map.slots_cache:
            # Nothing has to follow, so no task has to go on without the caller.
            try:
                return cast("T", await self._submit(operation, None))
            except PodLinkError as error:
                if not cluster.is_elsewhere(operation, error):
                    if isinstance(error, RedisUnavailable):
                        self._refresh()
                    raise
        (result,) = await self.run([operation], since=since)
        if isinstance(result, PodLinkError):
            raise result
        return cast("T", result)

    async def run(
        self, many: Sequence[Operation[Any]], *, ordered: bool = False, since: float | None = None
    ) -> list[Any]:
        """Run operations; each has its own result, or PodLinkError, in its own place.

        Without order, each goes through its steps by itself, so that a server that hangs holds up no other's. All go
        through all of their steps, also when the caller is cancelled or does not wait any longer, so that a link that
        was made is booked.

        Args:
            many: the operations.
            ordered: whether those of one uid, or of one service, keep their order.
            since: monotonic time at which the call began; None: now.
        """
        if not many:
            return []
        loop = asyncio.get_running_loop()
        groups = [many] if ordered else [[operation] for operation in many]
        spent = time.monotonic() - since if since is not None else 0.0
        left = self._timeout_seconds - spent
        tasks = [loop.create_task(self._run(group, left, ordered=ordered)) for group in groups]
        self._running.update(tasks)
        for task in tasks:
            task.add_done_callback(self._running.discard)
        await asyncio.wait(tasks, timeout=self._timeout_seconds * _PATIENCE - spent)
        late = Lost(timeout_error(self._timeout_seconds, sent=True), sent=True)
        results: list[Any] = []
        for task, group in zip(tasks, groups, strict=True):
            results += task.result() if task.done() else [outcome(operation, late) for operation in group]
        return results

    async def _run(self, many: Sequence[Operation[Any]], seconds: float, *, ordered: bool) -> list[Any]:
        steps = cluster.rounds(many, seconds, ordered=ordered)
        try:
            step = next(steps)
            while True:
                for moved in step.moved:
                    await self._map.move_slot(moved)
                if step.pause_seconds:
                    self._refresh()
                    await asyncio.sleep(step.pause_seconds)
                step = steps.send(await self._send(step))
        except StopIteration as end:
            results: list[Any] = end.value
            return results
        except cluster.UNREACHABLE as error:
            # Of redis-py, about its map. How far the calls had come is not known.
            return [outcome(operation, Lost(error, sent=True)) for operation in many]

    async def nodes(self, *, anew: bool) -> list[str]:
        """Addresses of the primaries.

        Args:
            anew: ask for the cluster's map, even if there is one.

        Raises:
            RedisUnavailable: no server of the cluster could be asked.
        """
        if anew:
            self._asked_at = float("-inf")
        try:
            await (asyncio.shield(self._refresh()) if anew else self._learn())
        except cluster.UNREACHABLE as error:
            raise unavailable("nodes", error, maybe_applied=False) from error
        return [node.name for node in self._client.get_primaries()]

    def health(self) -> Health:
        """Of all servers that calls went to so far; who has left the cluster is not missed."""
        servers = {address: queues.health() for address, queues in self._queues.items()}
        gone = servers.keys() - self._map.nodes_cache.keys()
        return added(health._replace(circuits_open=0) if at in gone else health for at, health in servers.items())

    async def aclose(self) -> None:
        """Wait for what is under way, and close all connections."""
        if self._running:
            await asyncio.wait(self._running)
        for queues in self._queues.values():
            await queues.aclose()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        for nodes in ("nodes_cache", "startup_nodes"):
            await self._map.aclose(nodes)

    async def _send(self, step: cluster.Round) -> list[Any]:
        try:
            await self._learn()
        except cluster.UNREACHABLE as error:
            return [outcome(operation, Lost(error, sent=False)) for operation, _ in step.asked]
        if step.ordered and len(step.asked) > 1:
            answers = await self._submit_in_order(step.asked)
        elif len(step.asked) == 1:
            # As most are; to gather costs as much as to submit.
            try:
                answers = [await self._submit(*step.asked[0])]
            except PodLinkError as error:
                answers = [error]
        else:
            submitted = [self._submit(operation, ask) for operation, ask in step.asked]
            answers = await asyncio.gather(*submitted, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, PodLinkError):
                raise answer  # an observer's, for example
        if any(isinstance(answer, RedisUnavailable) for answer in answers):
            # A server is away, and others may have its slots by now.
            self._refresh()
        return answers

    async def _submit_in_order(self, many: Sequence[tuple[Operation[Any], AskError | None]]) -> list[Any]:
        """Post what goes to one server as one pipeline."""
        operations = [operation for operation, _ in many]
        together: dict[CallQueue, list[tuple[int, Operation[Any]]]] = {}
        for slot, (operation, ask) in enumerate(many):
            host, port = (ask.host, int(ask.port)) if ask else self._owner(operation)
            pipeline = together.setdefault(self._queues_at(host, port).of(operations), [])
            pipeline += [(slot, cluster.ASKING)] * (ask is not None) + [(slot, operation)]
        submitted = [
            queue.submit_together([operation for _, operation in pipeline]) for queue, pipeline in together.items()
        ]
        answers: list[Any] = [None] * len(many)
        for pipeline, results in zip(together.values(), await asyncio.gather(*submitted), strict=True):
            # What ASKING was answered comes before what followed it.
            for (slot, _), result in zip(pipeline, results, strict=True):
                answers[slot] = result
        return answers

    async def _submit(self, operation: Operation[Any], ask: AskError | None) -> Any:
        if ask is not None:
            queue = self._queues_at(ask.host, int(ask.port)).of([operation])
            (_, result) = await queue.submit_together([cluster.ASKING, operation])
            return result
        host, port = self._owner(operation)
        return await self._queues_at(host, port).of([operation]).submit(operation)

    def _owner(self, operation: Operation[Any]) -> tuple[str, int]:
        if operation.shape.node:
            # Also if the map has no such server any more: another one would answer something else.
            host, _, port = operation.shape.node.rpartition(":")
            return host, int(port)
        keys = operation.keys
        node = (self._client.get_node_from_key(keys[0]) if keys else None) or self._client.get_primaries()[0]
        return node.host, int(node.port)

    def _queues_at(self, host: str, port: int) -> ServerQueues:
        address = f"{host}:{port}"
        if address not in self._queues:
            like = self._client.get_primaries()[0]
            settings = like.connection_kwargs | {
                "host": host,
                "port": port,
                "retry": Retry(NoBackoff(), 0),
                "socket_timeout": self._timeout_seconds,
                "socket_connect_timeout": self._timeout_seconds,
            }
            self._queues[address] = self._make(lambda: like.connection_class(**settings))
        return self._queues[address]

    async def _learn(self) -> None:
        """Ask for the cluster's map, unless there is one."""
        if not self._map.slots_cache:
            await asyncio.shield(self._refresh())

    def _refresh(self) -> "asyncio.Task[None]":
        """Ask for the cluster's map in the background, unless that was done a moment ago."""
        now = time.monotonic()
        asking = self._asking
        if asking is None or asking.cancelled() or (asking.done() and now - self._asked_at > cluster.FRESH_SECONDS):
            self._asked_at = now
            asking = self._asking = asyncio.get_running_loop().create_task(self._ask())
            asking.add_done_callback(_heard)
        return asking

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._map.initialize()
        except TimeoutError:
            raise no_map(self._timeout_seconds, self._map.startup_nodes) from None


def _heard(task: "asyncio.Task[None]") -> None:
    """Take note of an error that nobody may be waiting for: calls that need the map ask again."""
    if not task.cancelled():
        task.exception()
