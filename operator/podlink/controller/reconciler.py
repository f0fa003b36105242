"""Brings PodLinks and the links in Redis together, one object at a time.

There is one way in, a name in the queue, and one question, `decide`. Whoever puts a name there (a watch event, a pod
that appeared, a rival that was deleted, a clock, the sweep) need not say why.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from http import HTTPStatus
from time import monotonic

from podlink import tracing
from podlink.cluster.client import ApiError, Cluster
from podlink.cluster.events import EventRecorder, ObjectReference
from podlink.controller.links import apply, read_records
from podlink.controller.monitor import RedisMonitor
from podlink.controller.queue import WorkQueue
from podlink.domain.decide import Decision, Facts, Intend, LinkRecord, ReleaseLink, decide, redis_unavailable
from podlink.domain.errors import PodLinkError, RedisUnavailable, ScriptError
from podlink.domain.inventory import Inventory
from podlink.domain.podlinks import FINALIZER, Phase, PodLink, Reason, Status, read_podlink
from podlink.domain.registry import ObjectKey, PodLinks
from podlink.metrics import Metrics
from podlink.store.aio.executor import StatefulExecutor

logger = logging.getLogger(__name__)

WORKERS = 32
"""PodLinks handled at a time; most of that time is the API server's."""

_MAX_STEPS = 5
_WATCH_SECONDS = 1.0


class UnsettledError(PodLinkError):
    """A PodLink still asks for actions after several; somebody else keeps changing its link."""


class _StaleError(PodLinkError):
    """The API server knows a newer version of the object than we; it is on its way as a watch event."""


class Reconciler:
    """Looks at PodLinks whose names are put into its queue."""

    def __init__(
        self,
        links: PodLinks,
        inventory: Inventory,
        executor: StatefulExecutor,
        cluster: Cluster,
        monitor: RedisMonitor,
        recorder: EventRecorder,
        metrics: Metrics,
        *,
        is_ready: Callable[[str], bool],
    ) -> None:
        """Look at nothing yet; `is_ready` says whether all objects of a namespace are known."""
        self._links = links
        self._inventory = inventory
        self._executor = executor
        self._cluster = cluster
        self._monitor = monitor
        self._recorder = recorder
        self._metrics = metrics
        self._is_ready = is_ready
        self._queue = WorkQueue()
        self._causes: dict[ObjectKey, tracing.Cause] = {}
        self._parked: set[ObjectKey] = set()
        self._watched: dict[ObjectKey, LinkRecord] = {}

    def look_at(self, keys: Iterable[ObjectKey]) -> None:
        """Ask for PodLinks to be looked at."""
        keys = list(keys)
        cause = tracing.here()
        if cause is not None:
            for key in keys:
                self._causes.setdefault(key, cause)
        self._queue.update(keys)
        self._metrics.queue.set(len(self._queue))

    def is_busy_with(self, key: ObjectKey) -> bool:
        """Whether a PodLink is looked at, or is about to be, anyway."""
        return key in self._queue

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(WORKERS):
                    tasks.create_task(self._work())
                tasks.create_task(self._unpark())
                tasks.create_task(self._watch())
        finally:
            self._queue.close()

    async def drain(self) -> None:
        """Begin with no more PodLinks, and wait until those that were begun are done."""
        await self._queue.drain()

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            started = monotonic()
            try:
                with tracing.span("reconcile", self._causes.pop(key, None), about=self._about(key)):
                    outcome = await self._look(key)
            finally:
                self._queue.done(key)
                self._metrics.queue.set(len(self._queue))
            self._metrics.reconciles.labels(outcome).observe(monotonic() - started)

    def _about(self, key: ObjectKey) -> dict[str, str]:
        about = {"namespace": key[0], "object": f"PodLink/{key[1]}"}
        link = self._links.get(key)
        return about | {"uid": link.spec.uid, "object_uid": link.uid} if link else about

    async def _look(self, key: ObjectKey) -> str:
        """Look at one PodLink; return how that ended."""
        try:
            await self._reconcile(key)
        except RedisUnavailable as error:
            self._monitor.report(error)
            self._parked.add(key)
            return "redis_unavailable"
        except _StaleError:
            self._queue.retry(key)
            return "stale"
        except PodLinkError as error:
            logger.warning("PodLink %s/%s: %s; tried again in %.1f s", *key, error, self._queue.retry(key))
            await self._report_refusal(key, error)
            return "error"
        except Exception:
            # A fault of ours in one object must not stop the work on the others.
            logger.exception("PodLink %s/%s: tried again in %.1f s", *key, self._queue.retry(key))
            return "fault"
        self._queue.succeeded(key)
        return "ok"

    async def _unpark(self) -> None:
        """Hand back what waits for Redis when it returns."""
        while True:
            await self._monitor.available.wait()
            parked, self._parked = self._parked, set()
            self._queue.update(parked)
            await asyncio.sleep(_WATCH_SECONDS)

    async def _watch(self) -> None:
        """Notice when a link that a PodLink waits for is released: no event tells of it.

        Only PodLinks that wait like this are read, all of them in one pipeline.
        """
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            waiting = [link for key in self._watched if (link := self._links.get(key)) is not None]
            if not waiting or not self._monitor.available.is_set():
                continue
            try:
                records = await read_records(self._executor, waiting)
            except RedisUnavailable as error:
                self._monitor.report(error)
                continue
            self.look_at(
                link.key for link, record in zip(waiting, records, strict=True) if self._watched.get(link.key) != record
            )

    async def _reconcile(self, key: ObjectKey) -> None:
        link = self._links.get(key)
        if link is None or (link.deleting and not link.has_finalizer):
            self._watched.pop(key, None)
            return
        if not link.deleting and not self._is_ready(link.namespace):
            return  # the sweep that makes it ready asks again
        if not self._monitor.available.is_set():
            await self._report_outage(link)
            self._parked.add(key)
            return
        if not link.has_finalizer:
            guarded = await self._patch_finalizers(link, (*link.finalizers, FINALIZER))
            if guarded is None:
                return
            link = guarded
        try:
            await self._bring_together(link)
        except RedisUnavailable:
            await self._report_outage(self._links.get(key) or link)
            raise

    async def _bring_together(self, link: PodLink) -> None:
        """Act until nothing is left to do, then report."""
        acted, replaced = False, None
        for _ in range(_MAX_STEPS):
            facts = await self._facts(link, acted=acted, replaced=replaced)
            decision = decide(facts)
            if decision.action is None:
                await self._conclude(link, facts, decision)
                return
            if isinstance(decision.action, Intend):
                announced = await self._patch_status(link, decision.action.status)
                if announced is None:
                    return
                link = announced
                continue
            if not acted:
                acted, replaced = True, facts.record.pod_id
                self._tell_drift(facts, decision)
            await apply(self._executor, link, decision.action)
        raise UnsettledError(f"the link of uid {link.spec.uid} to service {link.spec.service} keeps changing")

    async def _facts(self, link: PodLink, *, acted: bool, replaced: int | None) -> Facts:
        (record,) = await read_records(self._executor, [link])
        if isinstance(record, PodLinkError):
            raise record
        return self.facts(link, record, acted=acted, replaced=replaced)

    def facts(self, link: PodLink, record: LinkRecord, *, acted: bool = False, replaced: int | None = None) -> Facts:
        """Put together what a decision on a PodLink rests on."""
        return Facts(
            link=link,
            record=record,
            service=self._inventory.view(link.namespace, link.spec.service),
            holder=self._links.holder(link),
            now=datetime.now(UTC),
            acted=acted,
            replaced=replaced,
        )

    async def _conclude(self, link: PodLink, facts: Facts, decision: Decision) -> None:
        self._watched.pop(link.key, None)
        if decision.finalize:
            await self._patch_finalizers(link, [name for name in link.finalizers if name != FINALIZER])
            return
        if decision.watch_record:
            self._watched[link.key] = facts.record
        if decision.wake_at is not None:
            self._queue.add_after(link.key, (decision.wake_at - facts.now).total_seconds())
        if decision.status is not None and decision.status != link.status:
            reported = await self._patch_status(link, decision.status)
            if reported is not None:
                self._tell_transition(link, reported)

    async def _report_refusal(self, key: ObjectKey, error: PodLinkError) -> None:
        """Say that Redis refuses the wish of one user: its own permissions, or a foreign value under the key."""
        link = self._links.get(key)
        if isinstance(error, ScriptError) and link is not None:
            try:
                await self._report_outage(link, str(error))
            except PodLinkError as failure:
                logger.warning("PodLink %s/%s: %s", *key, failure)
            except Exception:
                # As in the look itself, which is over.
                logger.exception("PodLink %s/%s: what Redis refused is not reported", *key)

    async def _report_outage(self, link: PodLink, refusal: str = "") -> None:
        """Say that a wish of the user waits. What merely might need repair is not touched: no PATCH storm."""
        status = redis_unavailable(link, datetime.now(UTC), refusal)
        waits = link.edited or link.deleting
        if refusal:
            # It also waits that was reported to wait for something else.
            due = (waits or link.status.ready.status != "True") and link.status.ready.message != status.ready.message
        else:
            due = waits and link.status.reason != Reason.REDIS_UNAVAILABLE
        if not due or (link.deleting and not link.has_finalizer):
            return
        reported = await self._patch_status(link, status)
        if reported is not None and refusal:
            self._tell_transition(link, reported)

    async def _patch_status(self, link: PodLink, status: Status) -> PodLink | None:
        try:
            body = await self._cluster.patch_status(link, link.status_patch(status))
        except ApiError as error:
            self._refused(link, error)
            return None
        return self._take_in(link, read_podlink(body))

    async def _patch_finalizers(self, link: PodLink, finalizers: Iterable[str]) -> PodLink | None:
        try:
            body = await self._cluster.patch_finalizers(link, list(finalizers))
        except ApiError as error:
            self._refused(link, error)
            return None
        return self._take_in(link, read_podlink(body))

    def _take_in(self, patched: PodLink, link: PodLink) -> PodLink:
        """Take in the answer to a patch of ours."""
        if link.deleting and not link.finalizers:
            # The last finalizer went: the object is gone, whatever a LIST made before still says.
            self.look_at(self._links.forget(link.key, link.uid, link.version))
            return link
        changed = self._links.observe(link)
        if (link.generation, link.deleting) == (patched.generation, patched.deleting):
            changed.discard(link.key)
        # Else the user was faster than our patch, and the watch event of that will not be news any more.
        self.look_at(changed)
        return link

    def _refused(self, link: PodLink, error: ApiError) -> None:
        """Take a refusal that only says that our knowledge is old; everything else is raised."""
        if error.status == HTTPStatus.NOT_FOUND:
            # An API server that has just started answers this too: a LIST that still has the version restores it.
            self.look_at(self._links.forget(link.key, link.uid, link.version - 1))
        elif error.status == HTTPStatus.CONFLICT:
            raise _StaleError(str(error)) from error
        else:
            raise error

    def _tell_transition(self, before: PodLink, after: PodLink) -> None:
        old, new = before.status, after.status
        if (old.phase, old.reason, old.pod_id) == (new.phase, new.reason, new.pod_id):
            return
        if old.reason == Reason.REDIS_UNAVAILABLE and (old.phase, old.pod_id) == (new.phase, new.pod_id):
            return
        fine = new.ready.status == "True" or new.phase in (Phase.EXPIRED, Phase.RELEASED)
        logger.info("PodLink %s/%s is %s (%s): %s", *after.key, new.phase, new.reason, new.ready.message)
        self._recorder.record(
            ObjectReference.of_podlink(after),
            "Normal" if fine else "Warning",
            new.reason,
            new.ready.message,
            action="Reconcile",
        )

    def _tell_drift(self, facts: Facts, decision: Decision) -> None:
        """Report that a link is not what was reported of it, before it is repaired."""
        status = facts.link.status
        if status.phase is not Phase.LINKED or facts.link.edited or facts.link.deleting or not status.owned:
            return
        if isinstance(decision.action, ReleaseLink) or status.pod_id is None or facts.service.lost(status.pod_id):
            return
        found = "no link" if facts.record.pod_id is None else f"a link to pod {facts.record.pod_id}"
        if facts.record.pod_id == status.pod_id:
            found += " that is not as declared"
        note = f"Redis holds {found} for uid {facts.link.spec.uid} instead of the link to pod {status.pod_id}; repaired"
        self._recorder.record(ObjectReference.of_podlink(facts.link), "Warning", "LinkDrifted", note, action="Repair")

    def count_phases(self) -> None:
        """Bring the gauge of PodLinks by phase up to date."""
        counts = Counter(link.status.phase or Phase.PENDING for link in self._links)
        for phase in Phase:
            self._metrics.podlinks.labels(phase.value).set(counts[phase])
