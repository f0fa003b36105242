"""The operator as a whole: what is made of what, started in which order, and stopped."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from podlink.cluster.client import ApiError, Cluster
from podlink.cluster.events import EventRecorder
from podlink.controller.intake import Intake
from podlink.controller.monitor import RedisMonitor
from podlink.controller.overlaps import tell_overlaps
from podlink.controller.reconciler import Reconciler
from podlink.controller.recounter import Recounter
from podlink.controller.state_writer import StateWriter
from podlink.controller.sweep import Sweeper
from podlink.domain.errors import PodLinkError
from podlink.domain.inventory import Inventory
from podlink.domain.registry import PodLinks
from podlink.domain.services import ServiceView
from podlink.handlers.runner import WatchRunner
from podlink.http import Endpoints
from podlink.metrics import Metrics
from podlink.store.embedded import EmbeddedRedis
from podlink.store.executor import StatefulExecutor

logger = logging.getLogger(__name__)


class SettingError(PodLinkError):
    """A setting that the operator cannot start with; the text names it."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What `podlink run` was told."""

    redis_url: str | None
    data_directory: Path
    namespaces: tuple[str, ...]
    """Empty: all namespaces."""
    pod_selector: str
    resync_seconds: float
    recount_seconds: float
    """0: loads are never recounted."""
    http_port: int


class Operator:
    """One operator: everything between the watches and Redis, wired together."""

    def __init__(
        self, config: Config, executor: StatefulExecutor, cluster: Cluster, metrics: Metrics, redis_name: str
    ) -> None:
        self.metrics = metrics
        self._inventory = Inventory()
        self._links = PodLinks()
        self.monitor = RedisMonitor(executor, metrics, name=redis_name, on_doubt=self._request_sweep)
        self._recorder = EventRecorder(cluster, on_dropped=metrics.dropped_events.inc)
        self.reconciler = Reconciler(
            self._links, self._inventory, executor, cluster, self.monitor, self._recorder, metrics
        )
        writer = StateWriter(self._inventory, executor, self.monitor, metrics, on_written=self._service_written)
        intake = Intake(
            self._inventory,
            self._links,
            writer,
            self.reconciler,
            metrics,
            on_relist=lambda: self._request_sweep("relist"),
        )
        self.sweeper = Sweeper(
            namespaces=config.namespaces,
            pod_selector=config.pod_selector,
            resync_seconds=config.resync_seconds,
            intake=intake,
            inventory=self._inventory,
            links=self._links,
            executor=executor,
            cluster=cluster,
            monitor=self.monitor,
            writer=writer,
            reconciler=self.reconciler,
            metrics=metrics,
        )
        self._recounter = Recounter(
            namespaces=config.namespaces,
            period_seconds=config.recount_seconds,
            executor=executor,
            monitor=self.monitor,
            metrics=metrics,
        )
        self.watches = WatchRunner(
            intake, namespaces=config.namespaces, pod_selector=config.pod_selector, on_restart=self._watches_restarted
        )
        self._writer = writer

    def problems(self) -> list[str]:
        """Return why the operator is not ready; empty when it is."""
        reasons = (self.monitor.problem, self.sweeper.problem, self.watches.problem)
        return [reason for reason in reasons if reason is not None]

    async def run(self, stop: asyncio.Event) -> None:
        """Work until the event is set."""
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(work)
                for work in (
                    self.monitor.run(),
                    self._writer.run(),
                    self.sweeper.run(),
                    self._recorder.run(),
                    self._after_first_sweep(self.watches.run),
                    self._after_first_sweep(self.reconciler.run),
                    self._after_first_sweep(self._recounter.run),
                )
            ]
            await stop.wait()
            for task in running:
                task.cancel()

    async def _after_first_sweep(self, run: Callable[[], Awaitable[None]]) -> None:
        # Until everything was listed once, a pod that is merely unknown would pass for one that is gone for good.
        await self.sweeper.done_once.wait()
        await run()

    def _service_written(self, before: ServiceView | None, after: ServiceView) -> None:
        self.reconciler.look_at(self._links.concerned(before, after))
        if tell_overlaps(self._recorder, before, after):
            # Who speaks for an id changed, and with it what versions of it mean.
            self._request_sweep("overlap")

    def refresh_gauges(self) -> None:
        """Bring those metrics up to date that are counted when somebody asks."""
        self.reconciler.count_phases()
        self.metrics.overlaps.set(self._writer.count_overlaps())

    def _request_sweep(self, cause: str) -> None:
        self.sweeper.request(cause)

    def _watches_restarted(self, cause: str) -> None:
        self.metrics.watch_restarts.inc()
        self.sweeper.request(cause)


async def run(config: Config) -> None:
    """Run the operator until SIGTERM or SIGINT.

    Raises:
        PodLinkError: it cannot start with these settings; the text says which and what to do.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        cluster = await Cluster.connect()
        stack.push_async_callback(cluster.aclose)
        await _check_selector(cluster, config)
        url = config.redis_url or await _start_embedded(config.data_directory, stack)
        executor = await stack.enter_async_context(
            StatefulExecutor.from_url(
                url,
                on_call=lambda name, seconds, outcome: metrics.redis_calls.labels(name, outcome).observe(seconds),
            )
        )
        redis_name = f"{'--redis-url' if config.redis_url else 'embedded Valkey'} {address_of(url)}"
        operator = Operator(config, executor, cluster, metrics, redis_name)
        endpoints = Endpoints(metrics.registry, problems=operator.problems, before_scrape=operator.refresh_gauges)
        stack.push_async_callback(endpoints.aclose)
        try:
            port = await endpoints.start(config.http_port)
        except OSError as error:
            raise SettingError(f"--http-port {config.http_port}: {error.strerror}; choose another port") from error
        logger.info(
            "operator started",
            extra={
                "redis": address_of(url),
                "namespaces": ",".join(config.namespaces) or "all",
                "http_port": port,
            },
        )
        await operator.run(stop)
    logger.info("operator stopped")


async def _check_selector(cluster: Cluster, config: Config) -> None:
    try:
        await cluster.check_selector(_first(config.namespaces), config.pod_selector)
    except ApiError as error:
        if error.status == HTTPStatus.BAD_REQUEST:
            raise SettingError(f"--pod-selector {config.pod_selector!r}: {error}") from error
        # Everything else may pass; the first sweep tries again and says why it cannot.
        logger.warning("%s", error)


def _first(namespaces: Sequence[str]) -> str | None:
    return namespaces[0] if namespaces else None


async def _start_embedded(directory: Path, stack: AsyncExitStack) -> str:
    embedded = EmbeddedRedis(directory)
    url = await asyncio.to_thread(embedded.start)
    stack.push_async_callback(asyncio.to_thread, embedded.stop)
    logger.info("no --redis-url: started an embedded Valkey", extra={"url": url, "directory": str(directory)})
    return url


def address_of(url: str) -> str:
    """Return a Redis URL without user and password, for logs; both may also stand in the query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
