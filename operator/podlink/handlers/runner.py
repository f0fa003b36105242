"""Runs Kopf's watches of a scope in a thread of their own, and starts them anew when Kopf gives up.

Kopf owns the loop it runs in: when it ends, it cancels every task there, and it installs signal handlers in the main
thread. In its own thread it can end (it does so on API errors that outlast its retries) without taking the operator
along.
"""

import asyncio
import concurrent.futures
import logging
import math
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import kopf

from podlink.cluster.access import Access, Session
from podlink.cluster.client import Cluster
from podlink.controller.intake import Intake
from podlink.controller.scopes import Scope
from podlink.domain.errors import PodLinkError
from podlink.handlers.connections import DOWN_SECONDS, WatchConnections
from podlink.handlers.settings import build_settings
from podlink.handlers.watches import build_registry

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 15.0
_HEALTHY_SECONDS = 60.0
_LOOK_SECONDS = 0.5
_LOGIN_PAUSE_SECONDS = 5.0
"""Between two logins: Kopf asks for another one as soon as the API server refused the last."""

_WATCHING = "multidimensional multitasker"
"""What Kopf calls the task that all watches hang on."""

_END_SECONDS = 10.0
"""Far more than Kopf takes to end, where it does."""


class WatchRunner:
    """Keeps the watches of one scope running until it is cancelled.

    Each scope has a Kopf of its own, because Kopf ends as a whole when one of its watches fails for good.
    """

    def __init__(
        self,
        intake: Intake,
        access: Access,
        scope: Scope,
        *,
        pod_selector: str,
        on_restart: Callable[[Scope], None],
    ) -> None:
        self._intake = intake
        self._access = access
        self._scope = scope
        self._pod_selector = pod_selector
        self._on_restart = on_restart

    async def run(self) -> None:
        """Watch from the first sweep on, until cancelled."""
        pause = _FIRST_PAUSE_SECONDS
        loop = asyncio.get_running_loop()
        while True:
            # Until everything was listed once, a pod that is merely unknown would pass for one that is gone for good.
            await self._scope.ready.wait()
            started = loop.time()
            reason = await self._watch_once()
            if loop.time() - started > _HEALTHY_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            self._scope.watches_failed(f"the watches ended: {reason}")
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE_SECONDS, pause * 2)
            self._on_restart(self._scope)

    async def _watch_once(self) -> str:
        """Run Kopf until it ends; return why it did."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[str] = loop.create_future()
        stop: concurrent.futures.Future[None] = concurrent.futures.Future()
        connections = WatchConnections([self._scope.namespace] if self._scope.namespace else [])

        def tell(reason: str) -> None:
            loop.call_soon_threadsafe(_resolve, ended, reason)

        def work() -> None:
            try:
                asyncio.run(self._operate(build_registry(self._intake, loop), connections, stop, tell))
                reason = "Kopf returned"
            except BaseException as error:  # noqa: BLE001 - whatever ends the thread must reach the supervisor
                reason = _describe(error)
            tell(reason)

        thread = threading.Thread(target=work, name="watches", daemon=True)
        thread.start()
        following = asyncio.create_task(self._follow(connections))
        try:
            return await asyncio.shield(ended)
        finally:
            following.cancel()
            _raise(stop)
            await asyncio.to_thread(thread.join, 10)

    async def _follow(self, connections: WatchConnections) -> None:
        """Tell the scope whether its watches are connected, until cancelled."""
        loop = asyncio.get_running_loop()
        patient_until = loop.time() + DOWN_SECONDS
        while True:
            problem = "; ".join(connections.problems())
            if not problem:
                self._scope.watches_connected()
            elif loop.time() < patient_until:
                self._scope.watches_starting(problem)
            else:
                self._scope.watches_failed(problem)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _operate(
        self,
        registry: kopf.OperatorRegistry,
        connections: WatchConnections,
        stop: "concurrent.futures.Future[None]",
        tell: Callable[[str], None],
    ) -> None:
        asyncio.get_running_loop().set_exception_handler(_leave_to_the_supervisor)
        logins = _Logins(self._access, connections)

        # By default Kopf would wait a minute before it looks at the credentials again.
        @kopf.on.login(registry=registry, backoff=_LOGIN_PAUSE_SECONDS)
        async def login(**_: Any) -> kopf.AiohttpSession:
            return await logins.login()

        guard = asyncio.create_task(_see_to_the_end(tell))
        try:
            await self._check()
            await kopf.operator(
                registry=registry,
                settings=build_settings(self._pod_selector),
                clusterwide=self._scope.namespace is None,
                namespaces=[self._scope.namespace] if self._scope.namespace else [],
                stop_flag=stop,
                # Else Kopf asks for the user's name, which a container's user need not have. Nobody is told it.
                identity="podlink",  # type: ignore[arg-type] # Kopf exports no type for it
            )
        finally:
            guard.cancel()
            await logins.aclose()
            # A thread of Kopf's loop waits for the flag, and the loop does not close before its threads have ended.
            _raise(stop)

    async def _check(self) -> None:
        """Make sure of the types and of the rights, which Kopf would ask for again and again before it gives up.

        Kopf looks for the types once, and never watches one that it did not find then.

        Raises:
            PodLinkError: a type or a right is missing, or the server cannot be asked.
        """
        cluster = await Cluster.connect(self._access)
        try:
            await cluster.check_types()
            await cluster.check_selector(self._scope.namespace, self._pod_selector)
        finally:
            await cluster.aclose()


class _Logins:
    """Logs Kopf in, at the start and whenever the API server refused its last login."""

    def __init__(self, access: Access, connections: WatchConnections) -> None:
        self._access = access
        self._connections = connections
        self._sessions: list[Session] = []
        self._logged_in_at: float | None = None

    async def login(self) -> kopf.AiohttpSession:
        """Open a session; the tokens in it are renewed without Kopf's doing.

        Raises:
            kopf.LoginError: the kubeconfig or the credentials cannot be used.
        """
        now = asyncio.get_running_loop().time
        again = self._logged_in_at is not None
        if self._logged_in_at is not None:
            await asyncio.sleep(self._logged_in_at + _LOGIN_PAUSE_SECONDS - now())
        self._logged_in_at = now()
        try:
            session = await self._access.open(self._connections, renew=again)
        except PodLinkError as error:
            raise kopf.LoginError(str(error)) from error
        await self.aclose()
        self._sessions.append(session)
        expiration = None if math.isinf(session.until) else datetime.fromtimestamp(session.until, UTC)
        return kopf.AiohttpSession(server=session.server, aiohttp_session=session.http, expiration=expiration)

    async def aclose(self) -> None:
        """Close the sessions; Kopf closes only those that it has sent something with."""
        while self._sessions:
            await self._sessions.pop().http.close()


def _describe(error: BaseException) -> str:
    """Say what an error says; those of Kopf carry the server's whole answer behind its message."""
    message = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    return message if isinstance(error, PodLinkError) else f"{type(error).__name__}: {message}"


def _leave_to_the_supervisor(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Take what asyncio says of Kopf's tasks and generators that were broken off; why they were is told elsewhere."""
    logger.debug("in the loop of the watches: %s", context["message"], exc_info=context.get("exception"))


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
