"""Runs Kopf's watches in a thread of their own, and starts them anew when Kopf gives up.

Kopf owns the loop it runs in: when it ends, it cancels every task there, and it installs signal handlers in the main
thread. In its own thread it can end (it does so on API errors that outlast its retries) without taking the operator
along.
"""

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf

from podlink.cluster.access import load_configuration
from podlink.cluster.client import Cluster
from podlink.controller.intake import Intake
from podlink.domain.errors import PodLinkError
from podlink.handlers.settings import build_settings
from podlink.handlers.watches import build_registry

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 15.0
_HEALTHY_SECONDS = 60.0
_LOGIN_PAUSE_SECONDS = 5.0
_WATCHING = "multidimensional multitasker"
"""What Kopf calls the task that all watches hang on."""

_END_SECONDS = 10.0
"""Far more than Kopf takes to end, where it does."""

_CREDENTIALS_LAST = timedelta(minutes=1)


class WatchRunner:
    """Keeps the watches running until it is cancelled."""

    def __init__(
        self, intake: Intake, *, namespaces: Sequence[str], pod_selector: str, on_restart: Callable[[str], None]
    ) -> None:
        self._intake = intake
        self._namespaces = list(namespaces)
        self._pod_selector = pod_selector
        self._on_restart = on_restart
        self.problem: str | None = "the watches have not started yet"
        """Why nothing is watched at the moment; None while everything is."""

    async def run(self) -> None:
        """Watch until cancelled."""
        pause = _FIRST_PAUSE_SECONDS
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            reason = await self._watch_once()
            if loop.time() - started > _HEALTHY_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            self.problem = f"the watches ended: {reason}"
            logger.warning("%s; started anew in %.1f s", self.problem, pause)
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE_SECONDS, pause * 2)
            self._on_restart("watch_restart")

    async def _watch_once(self) -> str:
        """Run Kopf until it ends; return why it did."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[str] = loop.create_future()
        stop: concurrent.futures.Future[None] = concurrent.futures.Future()
        thread = threading.Thread(target=self._run_kopf, args=(loop, ended, stop), name="watches", daemon=True)
        thread.start()
        try:
            return await asyncio.shield(ended)
        finally:
            _raise(stop)
            await asyncio.to_thread(thread.join, 10)

    def _run_kopf(
        self, loop: asyncio.AbstractEventLoop, ended: "asyncio.Future[str]", stop: "concurrent.futures.Future[None]"
    ) -> None:
        def tell(reason: str) -> None:
            loop.call_soon_threadsafe(_resolve, ended, reason)

        try:
            asyncio.run(self._operate(loop, stop, tell))
            reason = "Kopf returned"
        except BaseException as error:  # noqa: BLE001 - whatever ends the thread must reach the supervisor
            reason = str(error) if isinstance(error, PodLinkError) else f"{type(error).__name__}: {error}"
        tell(reason)

    async def _operate(
        self, loop: asyncio.AbstractEventLoop, stop: "concurrent.futures.Future[None]", tell: Callable[[str], None]
    ) -> None:
        registry = build_registry(self._intake, loop)

        @kopf.on.startup(registry=registry)
        async def started(**_: Any) -> None:
            loop.call_soon_threadsafe(setattr, self, "problem", None)

        # By default Kopf would wait a minute before it looks at the credentials again.
        @kopf.on.login(registry=registry, backoff=_LOGIN_PAUSE_SECONDS)
        async def login(**_: Any) -> kopf.ConnectionInfo:
            return await _connection_info()

        guard = asyncio.create_task(_see_to_the_end(tell))
        try:
            await _check_types()
            await kopf.operator(
                registry=registry,
                settings=build_settings(self._pod_selector),
                clusterwide=not self._namespaces,
                namespaces=self._namespaces,
                stop_flag=stop,
                # Else Kopf asks for the user's name, which a container's user need not have. Nobody is told it.
                identity="podlink",  # type: ignore[arg-type] # Kopf exports no type for it
            )
        finally:
            guard.cancel()
            # A thread of Kopf's loop waits for the flag, and the loop does not close before its threads have ended.
            _raise(stop)


async def _see_to_the_end(tell: Callable[[str], None]) -> None:
    """Tell of an end that Kopf does not come to, and bring it about.

    When one watch failed for good, the others may be waiting for new credentials, which nobody gives them any more, and
    Kopf waits for them.
    """
    watching: asyncio.Task[Any] | None = None
    while watching is None or not watching.done():
        watching = watching or next((task for task in asyncio.all_tasks() if task.get_name() == _WATCHING), None)
        await asyncio.sleep(1)
    await asyncio.sleep(_END_SECONDS)
    tell("a watch failed, and Kopf did not end by itself")
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


def _raise(flag: "concurrent.futures.Future[None]") -> None:
    with suppress(concurrent.futures.InvalidStateError):  # it is raised already
        flag.set_result(None)


def _resolve(ended: "asyncio.Future[str]", reason: str) -> None:
    if not ended.done():
        ended.set_result(reason)


async def _check_types() -> None:
    """Make sure of the types: Kopf looks for them once, and never watches one that it did not find then.

    Raises:
        PodLinkError: one is missing, or the server cannot be asked.
    """
    cluster = await Cluster.connect()
    try:
        await cluster.check_types()
    finally:
        await cluster.aclose()


async def _connection_info() -> kopf.ConnectionInfo:
    """Translate the cluster configuration for Kopf; it asks again before the credentials are a minute old."""
    try:
        configuration = await load_configuration()
        header = await configuration.get_api_key_with_prefix("BearerToken")
    except PodLinkError as error:
        raise kopf.LoginError(str(error)) from error
    scheme, _, token = (header or "").rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        username=configuration.username or None,
        password=configuration.password or None,
        scheme=scheme or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        proxy_url=configuration.proxy,
        expiration=datetime.now(UTC) + _CREDENTIALS_LAST,
    )
