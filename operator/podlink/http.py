"""The operator's HTTP endpoints: `/metrics`, `/healthz`, `/readyz`."""

import socket
from collections.abc import Callable, Sequence

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

Sentences = Callable[[], Sequence[str]]


class Endpoints:
    """An HTTP server for probes and scrapes.

    `/healthz` answers while the event loop runs, because a restart would help with nothing else. `/readyz` answers 503
    with one reason on each line until Redis and the cluster are available, each watch is connected and the first sweep
    is done. Then it answers 200 with "ok", and one line for each warning.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        problems: Sentences,
        warnings: Sentences,
        before_scrape: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._problems = problems
        self._warnings = warnings
        self._before_scrape = before_scrape
        self._runner: web.AppRunner | None = None

    async def start(self, port: int) -> int:
        """Listen on all addresses, and return the port. With port 0, the system chooses one.

        Raises:
            OSError: the port is taken.
        """
        application = web.Application()
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        # One socket for IPv4 and IPv6. With port 0, two sockets would get two different ports.
        both = socket.has_dualstack_ipv6()
        listener = socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
        )
        await web.SockSite(self._runner, listener).start()
        bound: int = listener.getsockname()[1]
        return bound

    async def aclose(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        problems = self._problems()
        if problems:
            return web.Response(status=503, text="".join(f"{problem}\n" for problem in problems))
        return web.Response(text="ok\n" + "".join(f"warning: {warning}\n" for warning in self._warnings()))

    async def _metrics(self, _: web.Request) -> web.Response:
        self._before_scrape()
        # aiohttp does not accept the charset in its argument content_type.
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
