"""One term of a leader: everything between the watches and Redis, wired together."""

import asyncio
import logging
from collections.abc import Sequence

from podlink.cluster.client import Cluster
from podlink.cluster.events import EventRecorder
from podlink.controller.intake import Intake
from podlink.controller.monitor import RedisMonitor
from podlink.controller.overlaps import tell_overlaps
from podlink.controller.reconciler import Reconciler
from podlink.controller.recounter import Recounter
from podlink.controller.scopes import Scope, Scopes
from podlink.controller.state_writer import StateWriter
from podlink.controller.sweep import Sweeper
from podlink.domain.errors import PodLinkError
from podlink.domain.inventory import Inventory
from podlink.domain.registry import PodLinks
from podlink.domain.services import ServiceView
from podlink.handlers.runner import WatchRunner
from podlink.metrics import Metrics
from podlink.store.aio.executor import StatefulExecutor

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 8.0
"""To end in order. A lease lasts longer, and so does the patience of a kubelet."""


class Term:
    """The work, from an empty picture of the cluster on; the next term begins with another one."""

    def __init__(
        self,
        *,
        namespaces: Sequence[str],
        pod_selector: str,
        resync_seconds: float,
        recount_seconds: float,
        executor: StatefulExecutor,
        cluster: Cluster,
        monitor: RedisMonitor,
        metrics: Metrics,
    ) -> None:
        self._metrics = metrics
        self._monitor = monitor
        self._scopes = Scopes(namespaces, metrics)
        self._inventory = Inventory()
        self._links = PodLinks()
        self._recorder = EventRecorder(cluster, on_dropped=metrics.dropped_events.inc)
        self._reconciler = Reconciler(
            self._links,
            self._inventory,
            executor,
            cluster,
            monitor,
            self._recorder,
            metrics,
            is_ready=self._scopes.is_ready,
        )
        self._writer = StateWriter(self._inventory, executor, monitor, metrics, on_written=self._service_written)
        intake = Intake(
            self._inventory,
            self._links,
            self._writer,
            self._reconciler,
            metrics,
            on_relist=lambda namespace: self._sweepers[self._scopes.of(namespace)].request("relist"),
        )
        turn = asyncio.Lock()
        self._sweepers = {
            scope: Sweeper(
                scope,
                turn=turn,
                pod_selector=pod_selector,
                resync_seconds=resync_seconds,
                intake=intake,
                inventory=self._inventory,
                links=self._links,
                executor=executor,
                cluster=cluster,
                monitor=monitor,
                writer=self._writer,
                reconciler=self._reconciler,
                metrics=metrics,
                on_swept=lambda: metrics.last_sweep.set(self._scopes.swept_at),
                on_older_cluster=self._start_anew,
            )
            for scope in self._scopes
        }
        self._recounter = Recounter(
            namespaces=namespaces,
            period_seconds=recount_seconds,
            executor=executor,
            monitor=monitor,
            metrics=metrics,
        )
        self._watches = [
            WatchRunner(intake, cluster.access, scope, pod_selector=pod_selector, on_restart=self._watches_restarted)
            for scope in self._scopes
        ]

    def problems(self) -> list[str]:
        """Return why the work does not go as it should; empty when it does."""
        return self._scopes.problems()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until told to stop, and end in order; cancelled, end at once."""
        async with asyncio.TaskGroup() as tasks:
            takes_in = [
                tasks.create_task(work)
                for work in (
                    *(sweeper.run() for sweeper in self._sweepers.values()),
                    *(watches.run() for watches in self._watches),
                    self._recount(),
                )
            ]
            carries_out = [
                tasks.create_task(work) for work in (self._writer.run(), self._recorder.run(), self._reconciler.run())
            ]
            await stop.wait()
            # No reason to wait for their end: a watch may take its time to see that it is over.
            _cancel(takes_in)
            try:
                async with asyncio.timeout(DRAIN_SECONDS):
                    await self._drain()
            except TimeoutError:
                logger.warning("not everything was done in %g s; the next start goes on with it", DRAIN_SECONDS)
            _cancel(carries_out)

    async def _drain(self) -> None:
        """Bring to Redis and to the cluster what was begun."""
        if self._monitor.available.is_set():
            try:
                await self._writer.flush()
            except PodLinkError as error:
                logger.warning("not all states were written (%s); the next start writes them", error)
        await self._reconciler.drain()
        await self._recorder.drain()

    async def _recount(self) -> None:
        # Behind the first sweep, which everything waits for.
        await self._scopes.any_ready()
        await self._recounter.run()

    def request_sweep(self, cause: str) -> None:
        """Ask for the cluster to be compared with Redis soon."""
        for sweeper in self._sweepers.values():
            sweeper.request(cause)

    def _start_anew(self) -> None:
        """Forget all that is known of the cluster: what was listed from now on has lower versions."""
        self._inventory.clear()
        self._links.clear()
        self._writer.clear()
        for scope in self._scopes:
            scope.ready.clear()
        self.request_sweep("start")

    def refresh_gauges(self) -> None:
        """Bring those metrics up to date that are counted when somebody asks."""
        self._reconciler.count_phases()
        self._metrics.overlaps.set(self._writer.count_overlaps())

    def _service_written(self, before: ServiceView | None, after: ServiceView) -> None:
        self._reconciler.look_at(self._links.concerned(before, after))
        if tell_overlaps(self._recorder, before, after):
            # Who speaks for an id changed, and with it what versions of it mean.
            self.request_sweep("overlap")

    def _watches_restarted(self, scope: Scope) -> None:
        self._metrics.watch_restarts.inc()
        self._sweepers[scope].request("watch_restart")


def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
