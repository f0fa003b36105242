"""Brings the states of pods and workloads to Redis.

Events only mark a service as changed; one task looks at what changed since the last write, as it is by then, and
writes it in one pipeline. However many events arrive while a write is under way, each pod is written once.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

import msgspec

from podlink import tracing
from podlink.controller.monitor import RedisMonitor
from podlink.domain.errors import PodLinkError, RedisUnavailable
from podlink.domain.inventory import Inventory, ServiceKey
from podlink.domain.services import ServiceView
from podlink.metrics import Metrics
from podlink.store import operations
from podlink.store.aio.executor import StatefulExecutor
from podlink.store.operations import Operation

logger = logging.getLogger(__name__)

BATCH = 500
"""Operations in one pipeline."""

_CAUSES = 16
"""Spans that a service's write is linked to. Events go on while Redis is away, so that there is a limit."""

_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0

OnWritten = Callable[[ServiceView | None, ServiceView], None]


class _Change(msgspec.Struct, frozen=True):
    """A service that changed, and the writes that the change asks for."""

    before: ServiceView | None
    after: ServiceView
    writes: list[Operation[Any]]
    mark: "_Mark"


class _Mark(msgspec.Struct, frozen=True):
    """That a service changed: when it was first told, and in which spans."""

    since: float
    causes: tuple[tracing.Cause, ...]

    def and_also(self, later: "_Mark | None") -> "_Mark":
        """Return this mark with the causes of a later one, if there is one, as many as there is room for."""
        return _Mark(self.since, (self.causes + later.causes)[:_CAUSES]) if later else self


class StateWriter:
    """The coalescing map between watch events and Redis."""

    def __init__(
        self,
        inventory: Inventory,
        executor: StatefulExecutor,
        monitor: RedisMonitor,
        metrics: Metrics,
        *,
        on_written: OnWritten,
    ) -> None:
        self._inventory = inventory
        self._executor = executor
        self._monitor = monitor
        self._metrics = metrics
        self._on_written = on_written
        self._changed: dict[ServiceKey, _Mark] = {}
        self._written: dict[ServiceKey, ServiceView] = {}
        self._wake = asyncio.Event()
        self._flushing = asyncio.Lock()

    def mark(self, services: Iterable[ServiceKey]) -> None:
        """Ask for services to be written as they will be by then."""
        cause = tracing.here()
        mark = _Mark(monotonic(), (cause,) if cause else ())
        for key in services:
            known = self._changed.get(key)
            if known is not None:
                self._metrics.coalesced.inc()
            self._changed[key] = known.and_also(mark) if known else mark
            self._wake.set()

    def count_overlaps(self) -> int:
        """Return how many StatefulSets write nothing because an older one has their ids."""
        return sum(len(view.rejected) for view in self._written.values())

    def clear(self) -> None:
        """Forget what was written, because the cluster's versions started anew."""
        self._written.clear()

    async def run(self) -> None:
        """Write until cancelled."""
        pause = _PAUSE_SECONDS
        while True:
            await self._wake.wait()
            await self._monitor.available.wait()
            self._wake.clear()
            try:
                await self.flush()
            except RedisUnavailable as error:
                self._monitor.report(error)
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE_SECONDS, pause * 2)
            else:
                pause = _PAUSE_SECONDS

    async def flush(self) -> None:
        """Write everything that is marked.

        Raises:
            RedisUnavailable: nothing is lost; what was not confirmed stays marked.
        """
        # The sweep flushes too; one at a time, so that what was written last is known.
        async with self._flushing:
            marked, self._changed = self._changed, {}
            changes = [self._change(key, mark) for key, mark in marked.items()]
            try:
                while changes:
                    batch = _take(changes)
                    with tracing.span("write", *_causes(batch), services=len(batch)):
                        await self._write(batch)
                    del changes[: len(batch)]
            except (RedisUnavailable, asyncio.CancelledError):
                for change in changes:
                    key = change.after.namespace, change.after.name
                    # What was told since came later.
                    self._changed[key] = change.mark.and_also(self._changed.get(key))
                self._wake.set()
                raise

    def _change(self, key: ServiceKey, mark: _Mark) -> _Change:
        before, after = self._written.get(key), self._inventory.view(*key)
        return _Change(before, after, list(self._writes(before, after)), mark)

    def _writes(self, before: ServiceView | None, after: ServiceView) -> Iterable[Operation[Any]]:
        namespace, service = after.namespace, after.name
        old_pods = before.pods if before is not None else {}
        for pod_id in old_pods.keys() | after.pods.keys():
            old, new = old_pods.get(pod_id), after.pods.get(pod_id)
            if old == new:
                continue
            # A pod that no longer speaks for the id is gone since the version that said so.
            version = max(
                new.version if new else 0,
                old.version if old else 0,
                self._inventory.version_of(old.uid) if old else 0,
            )
            state = new.state.value if new else ""
            yield operations.set_service_state(namespace, service, pod_id, state, version=str(version))
        old_workloads = before.workloads if before is not None else ()
        if old_workloads != after.workloads:
            version = max(
                max(workload.version, self._inventory.version_of(workload.uid))
                for workload in (*old_workloads, *after.workloads)
            )
            state = after.state.value if after.state else ""
            yield operations.set_workload_state(namespace, service, state, version=str(version))

    async def _write(self, batch: list[_Change]) -> None:
        replies = await self._executor.run_many([write for change in batch for write in change.writes])
        for reply in replies:
            if isinstance(reply, RedisUnavailable):
                raise reply
            if isinstance(reply, PodLinkError):
                # Another client put something else under our key; the sweep tries again and counts it.
                logger.error("state not written: %s", reply)
        now = monotonic()
        for change in batch:
            key = change.after.namespace, change.after.name
            if change.after.exists or change.after.rejected:
                self._written[key] = change.after
            else:
                self._written.pop(key, None)
            self._metrics.lag.observe(now - change.mark.since)
            self._on_written(change.before, change.after)


def _causes(changes: Iterable[_Change]) -> Iterable[tracing.Cause]:
    return {cause.trace_id: cause for change in changes for cause in change.mark.causes}.values()


def _take(changes: list[_Change]) -> list[_Change]:
    """Return as many changes as fit into one pipeline, at least one."""
    size, count = 0, 0
    for change in changes:
        size += len(change.writes)
        if count and size > BATCH:
            break
        count += 1
    return changes[:count]
