"""The sweep: compares the whole cluster with the whole of Redis and repairs what events missed.

Watches are not enough. Kopf reports no deletion that happened while a watch was down, other clients write to the
same keys, and Redis may lose its data. The sweep reads Redis first and lists the cluster afterwards. A LIST is
consistent, so whatever version a writer of this cluster could have put into Redis before is at most the version of the
LIST; a higher one belongs to another cluster (or to this one before its etcd was restored) and is overruled.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from time import monotonic
from typing import Any

import msgspec

from podlink import tracing
from podlink.cluster.client import ApiError, Cluster, Listing
from podlink.cluster.namespaces import NamespaceState, namespace_state
from podlink.controller.intake import Intake
from podlink.controller.links import read_records, run_groups
from podlink.controller.monitor import RedisMonitor
from podlink.controller.reconciler import Reconciler
from podlink.controller.scopes import Reason, Scope
from podlink.controller.state_writer import StateWriter
from podlink.domain.decide import decide
from podlink.domain.errors import PodLinkError, RedisUnavailable
from podlink.domain.inventory import Fact, Inventory, ServiceKey
from podlink.domain.podlinks import GROUP, PLURAL, PodLink
from podlink.domain.registry import PodLinks
from podlink.domain.workloads import Pod, Workload
from podlink.metrics import Metrics
from podlink.store import operations
from podlink.store.aio.executor import StatefulExecutor
from podlink.store.counting.scan import scan_services, supports_field_expiry
from podlink.store.operations import Operation

logger = logging.getLogger(__name__)

RELEASE = {"group": GROUP, "resource": PLURAL, "verb": "patch"}
"""The right to take our finalizer away."""

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
    """Sweeps one scope: when asked, and once in every resync period."""

    def __init__(
        self,
        scope: Scope,
        *,
        turn: asyncio.Lock,
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
        on_swept: Callable[[], None],
        on_older_cluster: Callable[[], None],
    ) -> None:
        """Sweep nothing yet.

        Args:
            scope: what to sweep.
            turn: shared by the sweeps of all scopes, so that one runs at a time. Each LIST is then newer than those of
                the sweeps before.
            pod_selector: label selector of the pods.
            resync_seconds: how long after a sweep the next one begins, when nobody asks earlier.
            intake: reads what is listed.
            inventory: gets the pods and StatefulSets.
            links: gets the PodLinks.
            executor: reads and repairs.
            cluster: is listed.
            monitor: knows whether Redis answers.
            writer: writes the services that changed.
            reconciler: gets the PodLinks to look at.
            metrics: count the sweeps.
            on_swept: is called after each sweep that went through.
            on_older_cluster: is called when the versions of the cluster went back, to forget all that is known of it.
        """
        self._scope = scope
        self._turn = turn
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
        self._on_swept = on_swept
        self._on_older_cluster = on_older_cluster
        self._asked = asyncio.Event()
        self._cause = "start"

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
            async with self._turn:
                swept = await self._try(cause)
            if not swept:
                self._cause = cause
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE_SECONDS, pause * 2)
                continue
            pause = _FIRST_PAUSE_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(self._resync_seconds):
                    await self._asked.wait()

    async def _try(self, cause: str) -> bool:
        """Sweep once; return whether that went through."""
        started = monotonic()
        try:
            with tracing.span("sweep", cause=cause):
                await self.sweep()
        except PodLinkError as error:
            self._metrics.sweep_failures.inc()
            if isinstance(error, ApiError):
                await self._explain(error)
                return False
            if isinstance(error, RedisUnavailable):
                self._monitor.report(error)
            self._scope.sweep_failed(Reason.REDIS, f"sweep failed: {error}")
            return False
        self._scope.sweep_done()
        self._metrics.sweeps.labels(cause).observe(monotonic() - started)
        self._on_swept()
        about = {"namespace": self._scope.namespace} if self._scope.namespace else {}
        logger.info("swept in %.2f s", monotonic() - started, extra={"cause": cause, **about})
        return True

    async def sweep(self) -> None:
        """Compare and repair once.

        Raises:
            PodLinkError: Redis or the API server failed half-way; what was repaired until then is right.
        """
        if self._scope.failure is not None:
            # Before Redis is read, which may be large: is there anything to compare it with?
            await self._cluster.check_selector(self._scope.namespace, self._pod_selector)
        await self._monitor.mark()
        stored = await self._read_redis()
        pods_version = await self._take_in_list(Pod)
        workloads_version = await self._take_in_list(Workload)
        await self._take_in_podlinks()
        await self._writer.flush()
        await self._repair_states(stored, pods_version, workloads_version)
        if not self._scope.ready.is_set():
            self._scope.ready.set()
            self._reconciler.look_at([link.key for link in self._links_here()])
        await self._repair_links()

    async def _explain(self, error: ApiError) -> None:
        """Say why the API server cannot be asked about this scope, and do what can be done all the same."""
        namespace = self._scope.namespace
        if error.status != HTTPStatus.FORBIDDEN or namespace is None:
            reason = Reason.FORBIDDEN if error.status == HTTPStatus.FORBIDDEN else Reason.API_SERVER
            self._scope.sweep_failed(reason, f"sweep failed: {error}")
            return
        state = await namespace_state(self._cluster, namespace)
        # The role goes with its namespace, before the PodLinks that wait to be released.
        releases = state is not NamespaceState.MISSING and await self._take_in_deletions()
        self._scope.sweep_failed(*_why_forbidden(namespace, state, error, releases=releases))

    async def _take_in_deletions(self) -> bool:
        """List the PodLinks alone, so that those that are being deleted are released; return whether we may."""
        namespace = str(self._scope.namespace)
        try:
            await self._take_in_podlinks()
            return await self._cluster.is_allowed(RELEASE | {"namespace": namespace})
        except ApiError:
            return False

    async def _read_redis(self) -> dict[ServiceKey, StoredService]:
        scope = self._scope
        services = {key for key in self._inventory.services() if scope.covers(key[0])}
        # Servers that cannot expire a field leave that to whoever walks over the keys anyway.
        prune = not await supports_field_expiry(self._executor)
        async for found in scan_services(self._executor, scope.namespace, prune=prune):
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
        """List one kind into the inventory; return the version of the LIST."""
        newest_before = self._inventory.newest_version(kind)
        namespace = self._scope.namespace
        listed: Listing[Pod] | Listing[Workload]
        if kind is Pod:
            listed = await self._cluster.list_pods(namespace, self._pod_selector, self._intake.read_pod)
        else:
            listed = await self._cluster.list_stateful_sets(namespace, self._intake.read_workload)
        if listed.version < newest_before:
            logger.warning("the cluster's versions went back: its etcd was restored or replaced; starting anew")
            self._on_older_cluster()
        self._writer.mark(self._inventory.replace(listed.items, kind, listed.version, namespace))
        return listed.version

    async def _take_in_podlinks(self) -> None:
        namespace = self._scope.namespace
        # Asked before the LIST: events that arrive during it may well be newer.
        newest_before = self._links.newest_version
        listed = await self._cluster.list_podlinks(namespace, self._intake.read_podlink)
        if listed.version < newest_before:
            # What the inventory holds was listed just now and is right.
            self._links.clear()
        self._reconciler.look_at(self._links.replace(listed.items, listed.version, namespace))
        self._links.expire_deletions(listed.version)

    def _links_here(self) -> list[PodLink]:
        return [link for link in self._links if self._scope.covers(link.namespace)]

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
        for batch in _batches(self._links_here()):
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


def _why_forbidden(namespace: str, state: NamespaceState, error: ApiError, *, releases: bool) -> tuple[Reason, str]:
    """Say why a namespace may not be listed, and what to do."""
    command = f"podlink release --namespace {namespace} --redis-url URL"
    if state is NamespaceState.MISSING:
        return Reason.NAMESPACE_NOT_FOUND, "it does not exist; create it, or take it out of --namespace"
    if state is not NamespaceState.TERMINATING:
        grant = "Grant the operator its role there; if the namespace is being deleted, run"
        return Reason.FORBIDDEN, f"{error}. {grant}: {command}"
    text = "it is being deleted; its PodLinks are released"
    if not releases:
        text = f"it is being deleted, and the right to release its PodLinks is gone. To free it, run: {command}"
    return Reason.NAMESPACE_TERMINATING, text


def _is_foreign(version: str | None, listed: int) -> bool:
    """Whether a version read before a LIST is none that this cluster can have had by then."""
    return version is not None and int(version) > listed


def _batches(items: Sequence[Any]) -> Iterable[list[Any]]:
    for start in range(0, len(items), _BATCH):
        yield list(items[start : start + _BATCH])
