"""What stands between an operator and its API server: an HTTP proxy, and a front that can be told to refuse watches."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import socketserver
import threading
from typing import TYPE_CHECKING, Self

import aiohttp
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def connect_proxy(port: int) -> Iterator[tuple[str, list[str]]]:
    """An HTTP proxy that leads every CONNECT to that port of 127.0.0.1; yields its URL and the targets asked for."""
    targets: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            targets.append(self.rfile.readline().decode().split()[1])
            while self.rfile.readline().strip():
                pass
            with socket.create_connection(("127.0.0.1", port)) as server:
                self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                relay(self.connection, server)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", targets
        server.shutdown()


def relay(one: socket.socket, other: socket.socket) -> None:
    """Hand on what each says, until one of them has no more to say."""
    with contextlib.suppress(OSError):
        while True:
            for ready in select.select([one, other], [], [])[0]:
                if not (data := ready.recv(65536)):
                    return
                (other if ready is one else one).sendall(data)


class Front:
    """A server in front of the API server, without TLS; it runs in a thread of its own."""

    def __init__(self, api_server: str, token: str) -> None:
        self._api_server = api_server
        self._token = token
        self._open: set[asyncio.Task[object]] = set()
        self.url = ""
        self.refused = ""
        """Plural of the resource whose watches are refused with status 503; empty: none."""

    def __enter__(self) -> Self:
        started = threading.Event()
        # asyncio.run ends whatever is still open then.
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)

    def end_watches(self) -> None:
        """End the watches that are open, as an API server does that goes away."""
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in self._open])

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        application = web.Application(client_max_size=2**24)
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        connector = aiohttp.TCPConnector(ssl=False, limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._session:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = "http://{}:{}".format(*runner.addresses[0][:2])
            started.set()
            await self._stopped.wait()
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        watch = request.query.get("watch") == "true"
        if watch and request.path.endswith(f"/{self.refused}"):
            return web.json_response({"kind": "Status", "message": "refused", "code": 503}, status=503)
        kept = ("Content-Type", "Accept", "Accept-Encoding")
        headers = {name: request.headers[name] for name in kept if name in request.headers}
        headers["Authorization"] = f"Bearer {self._token}"
        task = asyncio.current_task()
        assert task is not None
        if watch:
            self._open.add(task)
        try:
            async with self._session.request(
                request.method,
                f"{self._api_server}{request.path_qs}",
                headers=headers,
                data=await request.read() or None,
            ) as answer:
                passed = ("Content-Type", "Content-Encoding")
                response = web.StreamResponse(
                    status=answer.status,
                    headers={name: answer.headers[name] for name in passed if name in answer.headers},
                )
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                return response
        finally:
            self._open.discard(task)
