"""Runs the recount of loads: when the operator has started, and then periodically.

It is not a part of the sweep. The sweep must be fast, because everything else waits for it. A recount is slow, so that
it costs the server little.
"""

import asyncio
import logging
from collections.abc import Sequence
from time import monotonic

from podlink import tracing
from podlink.controller.monitor import RedisMonitor
from podlink.domain.errors import PodLinkError, RedisUnavailable
from podlink.metrics import Metrics
from podlink.store.aio.executor import StatefulExecutor
from podlink.store.counting import Recount, recount

logger = logging.getLogger(__name__)

_SHOWN_LOADS = 5


class Recounter:
    """Runs one recount after the other."""

    def __init__(
        self,
        *,
        namespaces: Sequence[str],
        period_seconds: float,
        executor: StatefulExecutor,
        monitor: RedisMonitor,
        metrics: Metrics,
    ) -> None:
        """Recount the loads of these namespaces (empty: all), period_seconds after the last recount (0: never)."""
        self._namespaces = namespaces
        self._period_seconds = period_seconds
        self._executor = executor
        self._monitor = monitor
        self._metrics = metrics

    async def run(self) -> None:
        """Recount until cancelled. A recount that fails runs again after one period."""
        while self._period_seconds > 0:
            await self._monitor.available.wait()
            started = monotonic()
            try:
                with tracing.span("recount"):
                    result = await recount(self._executor, self._namespaces)
            except PodLinkError as error:
                if isinstance(error, RedisUnavailable):
                    self._monitor.report(error)
                logger.warning("recount failed: %s; tried again in %g s", error, self._period_seconds)
            else:
                self._tell(result, monotonic() - started)
            await asyncio.sleep(self._period_seconds)

    def _tell(self, result: Recount, seconds: float) -> None:
        self._metrics.recounts.observe(seconds)
        self._metrics.recount_repairs.labels("load").inc(len(result.loads))
        self._metrics.recount_repairs.labels("temporary_link").inc(result.members)
        logger.info(
            "recounted %d links to %d services in %.1f s (walks: %d): repaired %d loads, %d units of temporary links%s",
            result.links,
            result.services,
            seconds,
            result.walks,
            len(result.loads),
            result.members,
            _details(result),
        )


def _details(result: Recount) -> str:
    details = [
        f"{each.namespace}/{each.service} pod {each.pod}: {each.before} -> {each.after}" for each in result.loads
    ]
    if len(details) > _SHOWN_LOADS:
        details[_SHOWN_LOADS:] = [f"{len(details) - _SHOWN_LOADS} more"]
    if result.reason:
        details.append(f"{result.left_out} keys left out, the first: {result.reason}")
    return f" ({'; '.join(details)})" if details else ""
