"""Who of several operators does the work: the one that holds a Lease (coordination.k8s.io/v1).

The algorithm is client-go's. A holder renews its Lease every few seconds; whoever sees it unchanged for as long as it
is valid, by the own clock, takes it. So clocks need not agree. The official client has an election too; it ends at the
first connection that fails, and never gives a Lease back, so that a rolling update would wait for its end.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from random import uniform
from time import monotonic
from typing import Any

from podlink.cluster.client import ApiError, Cluster

logger = logging.getLogger(__name__)


# As client-go has them, but that a holder gives up sooner.
VALID_SECONDS = 15
"""How long a Lease counts after its last renewal."""

GIVE_UP_SECONDS = 8.0
"""A holder that could not renew for so long stops its work. What is under way then takes its time to end, on a Redis
Cluster some 5 s, and has to be over before another one begins."""

PERIOD_SECONDS = 2.0
"""Between two renewals, or two attempts to take the Lease."""

ANSWER_SECONDS = 5.0
"""How long the API server may take."""

RENEWAL_SECONDS = 2.5
"""And where a holder waits for it, who has to ask again before it is too late."""


NAMESPACES = "podlink.io/namespaces"
"""Annotation of a Lease: which namespaces its holder serves, with commas between them. Empty: all."""


def is_held(lease: Mapping[str, Any]) -> bool:
    """Whether somebody holds a Lease, by this machine's clock."""
    spec = lease.get("spec") or {}
    if not spec.get("holderIdentity") or not spec.get("renewTime"):
        return False
    valid = timedelta(seconds=spec.get("leaseDurationSeconds") or VALID_SECONDS)
    return datetime.fromisoformat(spec["renewTime"]) + valid > datetime.now(UTC)


class Election:
    """Stands for one Lease.

    Attributes:
        problem: why it cannot be told who holds the Lease; None while it can.
        holder: who holds it, as far as is known; empty when nobody does.
    """

    def __init__(
        self, cluster: Cluster, namespace: str, name: str, identity: str, *, serves: Sequence[str] = ()
    ) -> None:
        """Take no part yet.

        Args:
            cluster: has the Lease.
            namespace: of the Lease.
            name: of the Lease.
            identity: by which others know us; no two may have the same.
            serves: which namespaces the holder will serve; none: all. It is noted on the Lease.
        """
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._annotations = {NAMESPACES: ",".join(serves)}
        self._seen: dict[str, Any] = {}
        self._seen_at = 0.0
        self._renewed_at = 0.0
        self.problem: str | None = f"{self._what}: not asked yet"
        self.holder = ""

    @property
    def _what(self) -> str:
        return f"Lease {self._namespace}/{self._name}"

    async def lead(self, work: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
        """Do the work whenever the Lease is ours, until told to stop; then give the Lease back.

        Args:
            work: is to return soon after `stop` is set; it is cancelled when the Lease is lost.
            stop: says that it is over.

        Raises:
            Exception: what the work raises; the Lease is given back then, too.
        """
        while await self._acquired(stop):
            working = asyncio.ensure_future(work())
            try:
                await self._hold(working)
                over = working.done()
            finally:
                working.cancel()
                await asyncio.wait([working])
            if over:
                await self._give_back()
            if not working.cancelled():
                working.result()  # which may be an error
            if over:
                return
            logger.warning("%s was lost: the work stops, and begins anew when the Lease is ours again", self._what)

    async def _acquired(self, stop: asyncio.Event) -> bool:
        """Wait until the Lease is ours, or for the stop; return which."""
        while not stop.is_set():
            if await self._try(ANSWER_SECONDS):
                logger.info("%s is ours", self._what, extra={"identity": self._identity})
                return True
            with suppress(TimeoutError):
                # Not all at the same time.
                async with asyncio.timeout(PERIOD_SECONDS * uniform(0.8, 1.2)):  # noqa: S311 - no secret
                    await stop.wait()
        return False

    async def _hold(self, working: "asyncio.Future[None]") -> None:
        """Renew until the work ends or the Lease is lost."""
        while not working.done() and self.holder == self._identity and (left := self._left()) > 0:
            # Sooner after an attempt that failed, so that one answer that never comes costs nobody the Lease.
            await asyncio.wait([working], timeout=min(PERIOD_SECONDS, left / 2))
            if not working.done() and (left := self._left()) > 0:
                # A server that hangs must not keep a holder from giving up in time.
                await self._try(min(left, RENEWAL_SECONDS))

    def _left(self) -> float:
        return self._renewed_at + GIVE_UP_SECONDS - monotonic()

    async def _try(self, seconds: float) -> bool:
        """Take or renew the Lease within a time, if it may be; return whether it is ours then."""
        before = monotonic()
        try:
            async with asyncio.timeout(seconds):
                held = await self._take()
        except ApiError as error:
            if error.status != HTTPStatus.CONFLICT:
                # Else somebody was faster, and the next look says who.
                self._tell(f"{self._what} cannot be used: {error}")
            return False
        except TimeoutError:
            self._tell(f"{self._what} cannot be used: no answer in time")
            return False
        self.problem = None
        if held:
            self._renewed_at = before
        return held

    async def _take(self) -> bool:
        try:
            lease = await self._cluster.read_lease(self._namespace, self._name)
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            body = {"metadata": {"name": self._name, "annotations": self._annotations}, "spec": self._spec({})}
            self._see(await self._cluster.create_lease(self._namespace, body))
            return True
        spec = lease.get("spec") or {}
        if spec != self._seen:
            self._see(lease)
        if self.holder not in ("", self._identity) and monotonic() - self._seen_at < self._duration(spec):
            return False
        annotations = (lease["metadata"].get("annotations") or {}) | self._annotations
        metadata = {**lease["metadata"], "annotations": annotations}
        ours = {**lease, "metadata": metadata, "spec": self._spec(spec)}
        self._see(await self._cluster.update_lease(self._namespace, self._name, ours))
        return True

    def _see(self, lease: dict[str, Any]) -> None:
        self._seen, self._seen_at = lease.get("spec") or {}, monotonic()
        holder = self._seen.get("holderIdentity") or ""
        if holder not in (self.holder, self._identity, ""):
            logger.info("%s is held by %s; standing by", self._what, holder)
        self.holder = holder

    def _duration(self, spec: dict[str, Any]) -> float:
        # As its holder has it: another version may hold it for longer.
        return float(spec.get("leaseDurationSeconds") or VALID_SECONDS)

    def _spec(self, before: dict[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        ours = before.get("holderIdentity") == self._identity
        return {
            **before,
            "holderIdentity": self._identity,
            "leaseDurationSeconds": VALID_SECONDS,
            "acquireTime": before.get("acquireTime", now) if ours else now,
            "renewTime": now,
            "leaseTransitions": before.get("leaseTransitions", 0) + (not ours and bool(before)),
        }

    async def _give_back(self) -> None:
        """Let the next one begin at once."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                lease = await self._cluster.read_lease(self._namespace, self._name)
                spec = lease.get("spec") or {}
                if spec.get("holderIdentity") == self._identity:
                    # Some clients take a Lease without a duration for a broken one.
                    spec = {**spec, "holderIdentity": "", "leaseDurationSeconds": 1}
                    await self._cluster.update_lease(self._namespace, self._name, {**lease, "spec": spec})
        except (ApiError, TimeoutError) as error:
            logger.warning(
                "%s was not given back (%s); it ends by itself", self._what, str(error) or "no answer in time"
            )

    def _tell(self, problem: str) -> None:
        if self.problem != problem:
            logger.warning("%s", problem)
        self.problem = problem
