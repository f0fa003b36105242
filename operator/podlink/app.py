"""The operator as a process: what it is made of, in which order that starts, and how it ends."""

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec

from podlink import __version__, tracing
from podlink.cluster.access import load_access, own_namespace
from podlink.cluster.client import ApiError, Cluster
from podlink.cluster.lease import Election
from podlink.cluster.preflight import Preflight
from podlink.controller.monitor import RedisMonitor
from podlink.controller.redis_advice import RedisAdvisor
from podlink.domain.errors import PodLinkError
from podlink.extras import needs
from podlink.http import Endpoints
from podlink.metrics import Metrics
from podlink.redis_settings import RedisAccess, RedisSettings
from podlink.store.aio.executor import StatefulExecutor
from podlink.store.aio.traced import TracedExecutor
from podlink.term import Term

if TYPE_CHECKING:
    from podlink.store.embedded import EmbeddedRedis

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SELECTOR_SECONDS = 10.0
_END_SECONDS = 18.0
"""From SIGTERM on. A kubelet kills after 30 s, if it was told nothing else."""


class SettingError(PodLinkError):
    """A setting that the operator cannot start with; the text names it."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What `podlink run` was told."""

    redis: RedisSettings
    data_directory: Path | None
    """Of the embedded Valkey; None where the user has no home directory and none was named."""
    namespaces: tuple[str, ...]
    """Empty: all namespaces."""
    pod_selector: str
    resync_seconds: float
    recount_seconds: float
    """0: loads are never recounted."""
    http_port: int
    lease: tuple[str | None, str] | None
    """Namespace (None: the pod's own) and name of the Lease whose holder does the work; None: there is one operator."""
    tracing: bool


class Operator:
    """One process. It answers probes from the start, and works while it is the leader."""

    def __init__(
        self, config: Config, cluster: Cluster, metrics: Metrics, embedded: "EmbeddedRedis | None" = None
    ) -> None:
        self._config = config
        self._embedded = embedded
        self._cluster = cluster
        self._metrics = metrics
        self._lease = _lease(config)
        self._access = RedisAccess(config.redis)
        self._executor: StatefulExecutor | None = None
        self._monitor: RedisMonitor | None = None
        self._advisor: RedisAdvisor | None = None
        self._preflight: Preflight | None = None
        self._election: Election | None = None
        self._term: Term | None = None
        self._script_reloads = 0

    def problems(self) -> list[str]:
        """Return why the operator is not ready; empty when it is."""
        parts = (self._access, self._monitor, self._preflight, self._election)
        reasons = [part.problem for part in parts if part is not None and part.problem is not None]
        if self._term is not None:
            reasons += self._term.problems()
        elif not reasons and (self._election is None or not self._election.holder):
            reasons.append("starting")
        return reasons

    def warnings(self) -> list[str]:
        """Return what should be changed, though the operator works with it."""
        return self._advisor.warnings if self._advisor is not None else []

    def refresh_gauges(self) -> None:
        """Bring those metrics up to date that are counted when somebody asks."""
        if self._executor is not None:
            health = self._executor.health()
            self._metrics.redis_connections.set(health.connections)
            self._metrics.redis_circuits_open.set(health.circuits_open)
            self._metrics.script_reloads.inc(health.script_reloads - self._script_reloads)
            self._script_reloads = health.script_reloads
        if self._term is not None:
            self._term.refresh_gauges()

    async def run(self, stop: asyncio.Event) -> None:
        """Run until told to stop.

        Raises:
            PodLinkError: it cannot start with these settings; the text says which and what to do.
        """
        async with AsyncExitStack() as stack:
            connected = await _unless(stop, self._connect(stack))
            if connected is None:
                return
            executor, redis_name = connected
            self._executor = executor
            self._monitor = monitor = RedisMonitor(executor, self._metrics, name=redis_name, on_doubt=self._doubt)
            self._advisor = advisor = RedisAdvisor(executor, monitor)
            self._preflight = Preflight(self._cluster, self._config.namespaces, self._lease)

            async def work() -> None:
                await self._work(executor, monitor, stop)

            async with asyncio.TaskGroup() as tasks:
                beside = [
                    tasks.create_task(each)
                    for each in (monitor.run(), advisor.run(), self._preflight.run(), self._follow_settings(stop))
                ]
                if self._lease:
                    self._election = Election(self._cluster, *self._lease, _identity(), serves=self._config.namespaces)
                    await self._election.lead(work, stop)
                else:
                    await work()
                for task in beside:
                    task.cancel()

    async def _connect(self, stack: AsyncExitStack) -> tuple[StatefulExecutor, str]:
        """Make the executor when all is there that it takes; return how messages call its Redis, too."""
        config = self._config
        await self._check_selector()
        options: dict[str, Any] = {}
        if self._embedded is not None:
            url = await _start_embedded(self._embedded, stack)
        else:
            target = await self._access.target()
            url, options = target.url, dict(target.options)
        kind = TracedExecutor if config.tracing else StatefulExecutor
        executor = kind.from_url(url, on_call=self._count_call, **options)
        await stack.enter_async_context(executor)
        name = f"{config.redis.flag} {address_of(url)}"
        logger.info("connecting to Redis", extra={"redis": address_of(url)})
        return executor, name

    async def _work(self, executor: StatefulExecutor, monitor: RedisMonitor, stop: asyncio.Event) -> None:
        config, metrics = self._config, self._metrics
        self._term = Term(
            namespaces=config.namespaces,
            pod_selector=config.pod_selector,
            resync_seconds=config.resync_seconds,
            recount_seconds=config.recount_seconds,
            executor=executor,
            cluster=self._cluster,
            monitor=monitor,
            metrics=metrics,
        )
        metrics.leader.set(1)
        try:
            await self._term.run(stop)
        finally:
            self._term = None
            # What they say is the next leader's to tell.
            metrics.leader.set(0)
            metrics.podlinks.clear()
            metrics.overlaps.set(0)
            metrics.scope_failing.clear()
            metrics.queue.set(0)

    async def _follow_settings(self, stop: asyncio.Event) -> None:
        """End when Redis is another one, or its password is; whoever runs the operator starts it anew."""
        if self._config.redis.may_change:
            logger.warning("%s changed: the operator ends, to be started anew with it", await self._access.changed())
            _end(stop)

    async def _check_selector(self) -> None:
        namespaces, selector = self._config.namespaces, self._config.pod_selector
        try:
            async with asyncio.timeout(_SELECTOR_SECONDS):
                await self._cluster.check_selector(namespaces[0] if namespaces else None, selector)
        except TimeoutError:
            logger.warning("the API server did not answer within %g s; the first sweep tries again", _SELECTOR_SECONDS)
        except ApiError as error:
            if error.status == HTTPStatus.BAD_REQUEST:
                raise SettingError(f"--pod-selector {selector!r}: {error}") from error
            # Everything else may pass; the first sweep tries again and says why it cannot.
            logger.warning("%s", error)

    def _doubt(self, cause: str) -> None:
        if self._advisor is not None:
            self._advisor.look_again()
        if self._term is not None:
            self._term.request_sweep(cause)

    def _count_call(self, name: str, seconds: float, outcome: str) -> None:
        self._metrics.redis_calls.labels(name, outcome).observe(seconds)


async def run(config: Config) -> None:
    """Run the operator until SIGTERM or SIGINT.

    Raises:
        PodLinkError: it cannot start with these settings; the text says which and what to do.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _end, stop)
    embedded = _embedded(config)
    metrics = Metrics()
    metrics.resync_period.set(config.resync_seconds)
    async with AsyncExitStack() as stack:
        if config.tracing:
            stack.push_async_callback(asyncio.to_thread, tracing.enable(__version__))
        cluster = await Cluster.connect(load_access())
        stack.push_async_callback(cluster.aclose)
        operator = Operator(config, cluster, metrics, embedded)
        endpoints = Endpoints(
            metrics.registry,
            problems=operator.problems,
            warnings=operator.warnings,
            before_scrape=operator.refresh_gauges,
        )
        stack.push_async_callback(endpoints.aclose)
        try:
            port = await endpoints.start(config.http_port)
        except OSError as error:
            raise SettingError(f"--http-port {config.http_port}: {error.strerror}; choose another port") from error
        watched = ",".join(config.namespaces) or "all"
        logger.info("operator started", extra={"version": __version__, "namespaces": watched, "http_port": port})
        await operator.run(stop)
    logger.info("operator stopped")


def _end(stop: asyncio.Event) -> None:
    """End in order; and if that takes too long, end."""
    if not stop.is_set():
        stop.set()
        # A look-up of a name that hangs, in one of asyncio's threads, would keep the process for as long as it likes.
        last = threading.Timer(_END_SECONDS, _end_at_once)
        last.daemon = True
        last.start()


def _end_at_once() -> None:
    logger.error("not ended in order within %g s: ended all the same; the next start makes up for it", _END_SECONDS)
    os._exit(1)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Do something that may take for ever, unless told to stop meanwhile."""
    stopped, working = asyncio.create_task(stop.wait()), asyncio.create_task(work)
    try:
        await asyncio.wait([stopped, working], return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        stopped.cancel()
        working.cancel()
        await asyncio.wait([stopped, working])


def _lease(config: Config) -> tuple[str, str] | None:
    if config.lease is None:
        return None
    namespace, name = config.lease
    namespace = namespace or own_namespace()
    if namespace is None:
        raise SettingError("--leader-elect: give --lease-namespace, for this is no pod that has a namespace of its own")
    return namespace, name


def _identity() -> str:
    return f"{socket.gethostname()}_{os.getpid()}_{uuid4().hex[:8]}"


def _embedded(config: Config) -> "EmbeddedRedis | None":
    if not config.redis.embedded:
        return None
    with needs("embedded", "no --redis-url is given, and the embedded Valkey"):
        from podlink.store.embedded import EmbeddedRedis  # noqa: PLC0415 - with the extra only
    if config.data_directory is None:
        raise SettingError("--data-dir: name a directory for the embedded Valkey; this user has no home directory")
    return EmbeddedRedis(config.data_directory)


async def _start_embedded(embedded: "EmbeddedRedis", stack: AsyncExitStack) -> str:
    url = await asyncio.to_thread(embedded.start)
    stack.push_async_callback(asyncio.to_thread, embedded.stop)
    logger.info("no --redis-url: started an embedded Valkey", extra={"url": url, "directory": str(embedded.directory)})
    return url


def address_of(url: str) -> str:
    """Return a Redis URL without user and password, for logs; both may also stand in the query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
