"""Which watches are connected. Kopf tells nobody, so it is read off the requests that it sends to the API server.

There is one watch for each resource and scope: a namespace, or all. Kopf LISTs before it watches, so a watch that is
connected has had its LIST.
"""

import time
from collections.abc import Sequence
from http import HTTPStatus

import aiohttp

from podlink.cluster.client import WATCHED, collection

DOWN_SECONDS = 15.0
"""How long a watch may be down before it is a problem. Kopf's own attempts to reconnect take up to 7 s; a watch that
ends on time is back within milliseconds."""


class _Watch:
    """One watch: the response that it reads from, or why there is none."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.response: aiohttp.ClientResponse | None = None
        self.error = ""
        self.down_since: float | None = None
        """None while it is connected, and before it was for the first time."""

    def connected(self, response: aiohttp.ClientResponse) -> None:
        self.response, self.error, self.down_since = response, "", None

    def failed(self, error: str) -> None:
        self.error = error
        self._note_the_end()

    def problem(self) -> str | None:
        if self.response is None:
            return f"{self.what} is not connected yet{self._reason()}"
        self._note_the_end()
        if self.down_since is None or (seconds := time.monotonic() - self.down_since) < DOWN_SECONDS:
            return None
        return f"{self.what} has been down for {seconds:.0f} s{self._reason()}"

    def _note_the_end(self) -> None:
        if self.response is not None and self.response.closed and self.down_since is None:
            self.down_since = time.monotonic()

    def _reason(self) -> str:
        return f": {self.error}" if self.error else ""


class WatchConnections:
    """Sees each request of Kopf's session as an aiohttp middleware, and knows which watches are connected."""

    def __init__(self, namespaces: Sequence[str]) -> None:
        """Expect the watches of these namespaces; none named: of all."""
        self._watches = {
            collection(root, plural, namespace): _Watch(f"the watch of {plural} in {_scope(namespace)}")
            for namespace in namespaces or (None,)
            for root, plural in WATCHED
        }

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send a request, and keep in mind what came of it."""
        watch = next((each for path, each in self._watches.items() if request.url.path.endswith(path)), None)
        try:
            response = await handler(request)
        except Exception as error:
            if watch:
                watch.failed(str(error) or type(error).__name__)
            raise
        if watch and response.status >= HTTPStatus.BAD_REQUEST:
            watch.failed(f"HTTP {response.status} {response.reason}")
        elif watch and request.url.query.get("watch") == "true":
            watch.connected(response)
        return response

    def problems(self) -> list[str]:
        """Return which watches are not connected yet, or have been down for long."""
        return [problem for each in self._watches.values() if (problem := each.problem()) is not None]


def _scope(namespace: str | None) -> str:
    return f"namespace {namespace}" if namespace else "all namespaces"
