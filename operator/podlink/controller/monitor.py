"""Whether Redis is there, and whether it is still the one we wrote to.

A marker in Redis, written before each sweep, distinguishes a Redis that lost its data, or was replaced by another, from
one that was only unavailable. It is read once a second, together with the run id of the server (of a cluster: of all
primaries). Each probe writes too, because the operator cannot use a Redis that accepts no writes (out of memory,
read-only, too few replicas).

The operator may be moved to another primary and back between two probes, without any failed call: Sentinels close the
connections of a primary that they demote. Links that were written to it are lost. So each new connection counts as a
move, and a sweep follows.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple
from uuid import uuid4

from podlink.domain.errors import PodLinkError, ScriptError
from podlink.metrics import Metrics
from podlink.store import operations
from podlink.store.aio.executor import StatefulExecutor
from podlink.store.operations import Operation

logger = logging.getLogger(__name__)

MARKER = "epoch"
HEARTBEAT = "heartbeat"

_INTERVAL_SECONDS = 1.0
_DEADLINE_SECONDS = 3.0


class _Identity(NamedTuple):
    """By which a Redis is known again."""

    marker: str | None
    run_ids: frozenset[str | None]
    opened: int
    """Connections that were opened until then."""


class RedisMonitor:
    """Knows whether Redis answers; tells when it returns and when its data is not what it was."""

    def __init__(
        self, executor: StatefulExecutor, metrics: Metrics, *, name: str, on_doubt: Callable[[str], None]
    ) -> None:
        self._executor = executor
        self._name = name
        self._metrics = metrics
        self._on_doubt = on_doubt
        self._probe_now = asyncio.Event()
        self._identity: _Identity | None = None
        self.available = asyncio.Event()
        """Set while Redis answers."""
        self.problem: str | None = f"{name}: not asked yet"
        """Why it is not available; None while it is."""

    def report(self, error: PodLinkError) -> None:
        """Say that a call failed, so that Redis counts as away until a probe succeeds."""
        self._went(str(error))
        self._probe_now.set()

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            self._probe_now.clear()
            try:
                async with asyncio.timeout(_DEADLINE_SECONDS):
                    await self._probe()
            except PodLinkError as error:
                self._went(str(error))
            except TimeoutError:
                self._went(f"Redis did not answer within {_DEADLINE_SECONDS:g} seconds")
            await self._pause()

    async def mark(self) -> None:
        """Put the marker into Redis if it has none; before a sweep reads, so that a loss in between is noticed."""
        identity = await self._ask()
        self._compare(identity)
        if identity.marker is None:
            identity = identity._replace(marker=uuid4().hex)
            await self._executor.run(operations.set_marker(MARKER, str(identity.marker)))
        self._identity = identity

    async def _probe(self) -> None:
        identity = await self._ask()
        known = self._identity
        returned = not self.available.is_set()
        self._came()
        if self._compare(identity):
            self._on_doubt("data_loss")
        elif known is not None and (returned or known[1:] != identity[1:]):
            self._on_doubt("redis_return")

    def _compare(self, identity: _Identity) -> bool:
        """Take note of who answers now; return whether data is lost that was there."""
        known, self._identity = self._identity, identity
        # One without a marker has no data of ours yet; that a leader has just put one there is no loss.
        lost = known is not None and known.marker is not None and known.marker != identity.marker
        if lost:
            logger.warning("Redis lost its data, or is another one: links that other clients made are gone")
            self._metrics.data_losses.inc()
        return lost

    async def _ask(self) -> _Identity:
        look: list[Operation[Any]] = [operations.get_marker(MARKER), operations.set_marker(HEARTBEAT, "podlink")]
        look += [operations.run_id(node=node) for node in await self._executor.nodes()]
        replies: list[Any] = await self._executor.run_many(look)
        # A user that may not use INFO has no run ids; the marker alone tells a loss.
        marker, written, *run_ids = replies[:2] + [None if isinstance(r, ScriptError) else r for r in replies[2:]]
        for reply in (marker, written, *run_ids):
            if isinstance(reply, PodLinkError):
                raise reply
        # Counted after the answers: a connection that was opened for them is one of the moves that they are about.
        return _Identity(marker, frozenset(run_ids), self._executor.health().opened)

    async def _pause(self) -> None:
        # A failed call asks for a probe at once, but never for more than ten a second.
        await asyncio.sleep(_INTERVAL_SECONDS / 10)
        with suppress(TimeoutError):
            async with asyncio.timeout(_INTERVAL_SECONDS * 0.9):
                await self._probe_now.wait()

    def _came(self) -> None:
        if not self.available.is_set():
            logger.info("Redis is available")
        self.problem = None
        self._metrics.redis_up.set(1)
        self.available.set()

    def _went(self, cause: str) -> None:
        problem = f"{self._name}: {cause}"
        if self.available.is_set() or self.problem != problem:
            logger.warning("Redis is not available: %s", problem)
        self.problem = problem
        self._metrics.redis_up.set(0)
        self.available.clear()
