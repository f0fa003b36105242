"""The sweep: compares the whole cluster with the whole of Redis and repairs what events missed.

Watches are not enough. Kopf reports no deletion that happened while a watch was down, other clients write to the
same keys, and Redis may lose its data. The sweep reads Redis first and lists the cluster afterwards. A LIST is
consistent, so whatever version a writer of this cluster could have put into Redis before is at most the version of the
LIST; a higher one belongs to another cluster (or to this one before its etcd was restored) and is overruled.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

import msgspec

from podlink import tracing
from podlink.cluster.client import Cluster, Listing
from podlink.controller.intake import Intake
from podlink.controller.links import read_records, run_groups
from podlink.controller.monitor import RedisMonitor
from podlink.controller.reconciler import Reconciler
from podlink.controller.state_writer import StateWriter
from podlink.domain.decide import decide
from podlink.domain.errors import PodLinkError, RedisUnavailable
from podlink.domain.inventory import Fact, Inventory, ServiceKey
from podlink.domain.podlinks import PodLink
from podlink.domain.registry import PodLinks
from podlink.domain.workloads import Pod, Workload
from podlink.metrics import Metrics
from podlink.store import operations
from podlink.store.aio.executor import StatefulExecutor
from podlink.store.counting.scan import scan_services, supports_field_expiry
from podlink.store.operations import Operation

logger = logging.getLogger(__name__)

_BATCH = 500
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0


class StoredService(msgspec.Struct, frozen=True):
    """What Redis held of one service when the sweep read it."""

    states: dict[int, str]
    versions: dict[int, str]
    workload_state: str | None
    workload_version: str | None


class Sweeper:
    """Sweeps when asked, and once in every resync period."""

    def __init__(
        self,
        *,
        namespaces: Sequence[str],
        pod_selector: str,
        resync_seconds: float,
        intake: Intake,
        inventory: Inventory,
        links: PodLinks,
        executor: StatefulExecutor,
        cluster: Cluster,
        monitor: RedisMonitor,
        writer: StateWriter,
        reconciler: Reconciler,
        metrics: Metrics,
    ) -> None:
        self._scopes: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._pod_selector = pod_selector
        self._resync_seconds = resync_seconds
        self._intake = intake
        self._inventory = inventory
        self._links = links
        self._executor = executor
        self._cluster = cluster
        self._monitor = monitor
        self._writer = writer
        self._reconciler = reconciler
        self._metrics = metrics
        self._asked = asyncio.Event()
        self._cause = "start"
        self.done_once = asyncio.Event()
        """Set when the first sweep is through: from then on the operator's picture of the cluster is whole."""
        self.problem: str | None = "the first sweep has not run yet"
        """Why the last sweep failed; None after one that didn't."""

    def request(self, cause: str) -> None:
        """Ask for a sweep; what is asked for during one leads to another."""
        self._cause = cause
        self._asked.set()

    async def run(self) -> None:
        """Sweep until cancelled: at once, when asked, and each resync period."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            await self._monitor.available.wait()
            self._asked.clear()
            cause, self._cause = self._cause, "resync"
            started = monotonic()
            try:
                with tracing.span("sweep", cause=cause):
                    await self.sweep()
            except PodLinkError as error:
                self._metrics.sweep_failures.inc()
                if isinstance(error, RedisUnavailable):
                    self._monitor.report(error)
                self.problem, self._cause = f"sweep failed: {error}", cause
                logger.warning("%s; tried again in %.1f s", self.problem, pause, extra={"cause": cause})
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE_SECONDS, pause * 2)
                continue
            pause = _FIRST_PAUSE_SECONDS
            self.problem = None
            self.done_once.set()
            self._metrics.sweeps.labels(cause).observe(monotonic() - started)
            self._metrics.last_sweep.set_to_current_time()
            logger.info("swept in %.2f s", monotonic() - started, extra={"cause": cause})
            with suppress(TimeoutError):
                async with asyncio.timeout(self._resync_seconds):
                    await self._asked.wait()

    async def sweep(self) -> None:
        """Compare and repair once.

        Raises:
            PodLinkError: Redis or the API server failed half-way; what was repaired until then is right.
        """
        await self._monitor.mark()
        stored = await self._read_redis()
        pods_version = await self._take_in_list(Pod)
        workloads_version = await self._take_in_list(Workload)
        await self._take_in_podlinks()
        await self._writer.flush()
        await self._repair_states(stored, pods_version, workloads_version)
        await self._repair_links()

    async def _read_redis(self) -> dict[ServiceKey, StoredService]:
        services = set(self._inventory.services())
        # Servers that cannot expire a field leave that to whoever walks over the keys anyway.
        prune = not await supports_field_expiry(self._executor)
        for scope in self._scopes:
            async for found in scan_services(self._executor, scope, prune=prune):
                services |= found
        return await self._read_services(services)

    async def _read_services(self, services: Iterable[ServiceKey]) -> dict[ServiceKey, StoredService]:
        stored: dict[ServiceKey, StoredService] = {}
        for batch in _batches(sorted(services)):
            reads: list[Operation[Any]] = []
            for namespace, service in batch:
                reads += [
                    operations.get_service_state(namespace, service),
                    operations.get_state_versions(namespace, service),
                    operations.get_workload_state(namespace, service),
                    operations.get_workload_version(namespace, service),
                ]
            for key, replies in zip(batch, await run_groups(self._executor, reads, 4), strict=True):
                if isinstance(replies, PodLinkError):
                    # Another client put something else there. That must not keep all other services from repair.
                    self._unreadable("service", key, replies)
                else:
                    stored[key] = StoredService(*replies)
        return stored

    def _unreadable(self, what: str, key: tuple[str, str], error: PodLinkError) -> None:
        self._metrics.repairs.labels("unreadable").inc()
        logger.warning("%s %s/%s is left out of the sweep: %s", what, *key, error, extra={"namespace": key[0]})

    async def _take_in_list(self, kind: type[Fact]) -> int:
        """List one kind into the inventory; return the version of the (oldest) LIST."""
        newest_before = self._inventory.newest_version(kind)
        versions = []
        for scope in self._scopes:
            listed: Listing[Pod] | Listing[Workload]
            if kind is Pod:
                listed = await self._cluster.list_pods(scope, self._pod_selector, self._intake.read_pod)
            else:
                listed = await self._cluster.list_stateful_sets(scope, self._intake.read_workload)
            if listed.version < newest_before:
                self._start_anew()
                newest_before = 0
            self._writer.mark(self._inventory.replace(listed.items, kind, listed.version, scope))
            versions.append(listed.version)
        return min(versions)

    def _start_anew(self) -> None:
        logger.warning("the cluster's versions went back: its etcd was restored or replaced; starting anew")
        self._inventory.clear()
        self._links.clear()
        self._writer.clear()

    async def _take_in_podlinks(self) -> None:
        for scope in self._scopes:
            # Asked before the LIST: events that arrive during it may well be newer.
            newest_before = self._links.newest_version
            listed = await self._cluster.list_podlinks(scope, self._intake.read_podlink)
            if listed.version < newest_before:
                # What the inventory holds was listed just now and is right.
                self._links.clear()
            self._reconciler.look_at(self._links.replace(listed.items, listed.version, scope))
            self._links.expire_deletions(listed.version)

    async def _repair_states(
        self, before: dict[ServiceKey, StoredService], pods_version: int, workloads_version: int
    ) -> None:
        """Write what is wrong, given what Redis held before the LISTs."""
        suspects = [
            key for key, stored in before.items() if self._differs(key, stored, pods_version, workloads_version)
        ]
        # What the state writer has brought to Redis since is no repair.
        now = await self._read_services(suspects)
        repairs: list[Operation[Any]] = []
        for key, stored in now.items():
            repairs += self._pod_repairs(key, stored, before[key].versions, pods_version)
            repairs += self._workload_repairs(key, stored, before[key].workload_version, workloads_version)
        for batch in _batches(repairs):
            for group in await run_groups(self._executor, batch, 1):
                if isinstance(group, PodLinkError):
                    logger.error("state not repaired: %s", group)
        self._inventory.expire_deletions(min(pods_version, workloads_version))

    def _differs(self, key: ServiceKey, stored: StoredService, pods_version: int, workloads_version: int) -> bool:
        view = self._inventory.view(*key)
        states = {pod_id: pod.state.value for pod_id, pod in view.pods.items()}
        if states != stored.states or view.state != stored.workload_state:
            return True
        # A foreign version with the right state beside it would have the next write refused.
        return _is_foreign(stored.workload_version, workloads_version) or any(
            _is_foreign(version, pods_version) for version in stored.versions.values()
        )

    def _pod_repairs(
        self, key: ServiceKey, stored: StoredService, versions: Mapping[int, str], listed: int
    ) -> Iterator[Operation[Any]]:
        view = self._inventory.view(*key)
        foreign = {pod_id for pod_id, version in versions.items() if _is_foreign(version, listed)}
        for pod_id in stored.states.keys() | view.pods.keys() | foreign:
            pod = view.pods.get(pod_id)
            wanted, found = pod.state.value if pod else "", stored.states.get(pod_id, "")
            if wanted == found and pod_id not in foreign:
                continue
            if pod is None and pod_id not in stored.versions and not view.exists:
                continue  # another client keeps a service that this cluster does not have
            version = max(listed, pod.version if pod else 0)

            def write(at: str | None, pod_id: int = pod_id, wanted: str = wanted) -> Operation[Any]:
                return operations.set_service_state(*key, pod_id, wanted, version=at)

            if pod_id in foreign:
                yield write(None)
            yield write(str(version))
            self._metrics.repairs.labels("pod_state").inc()

    def _workload_repairs(
        self, key: ServiceKey, stored: StoredService, stored_version: str | None, listed: int
    ) -> Iterator[Operation[Any]]:
        view = self._inventory.view(*key)
        wanted, found = view.state.value if view.state else "", stored.workload_state or ""
        foreign = _is_foreign(stored_version, listed)
        if wanted == found and not foreign:
            return
        if not wanted and stored.workload_version is None and not view.exists:
            return  # another client's
        version = max([listed, *(workload.version for workload in view.workloads)])

        def write(at: str | None) -> Operation[Any]:
            return operations.set_workload_state(*key, wanted, version=at)

        if foreign:
            yield write(None)
        yield write(str(version))
        self._metrics.repairs.labels("workload_state").inc()

    async def _repair_links(self) -> None:
        """Look again at every PodLink about which the records in Redis ask for something."""
        for batch in _batches(list(self._links)):
            asked: list[PodLink] = [link for link in batch if link.deleting or not link.settled]
            records = await read_records(self._executor, asked)
            for link, record in zip(asked, records, strict=True):
                if isinstance(record, PodLinkError):
                    self._unreadable("the link of PodLink", link.key, record)
                    continue
                decision = decide(self._reconciler.facts(link, record))
                if decision.action is not None or decision.finalize or decision.status != link.status:
                    # What is being worked on anyway is no repair.
                    if not (link.edited or link.deleting or self._reconciler.is_busy_with(link.key)):
                        self._metrics.repairs.labels("podlink").inc()
                    self._reconciler.look_at([link.key])
            await asyncio.sleep(0)  # thousands of decisions must not hold up the probes


def _is_foreign(version: str | None, listed: int) -> bool:
    """Whether a version read before a LIST is none that this cluster can have had by then."""
    return version is not None and int(version) > listed


def _batches(items: Sequence[Any]) -> Iterable[list[Any]]:
    for start in range(0, len(items), _BATCH):
        yield list(items[start : start + _BATCH])
