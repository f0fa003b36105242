"""What comes back from the API server, or from something in its place, that is no answer: one kind of error for all."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from podlink.cluster.access import Access, load_access
from podlink.cluster.client import ApiError, Cluster
from podlink.cluster.kubeconfig import ClusterSettings
from podlink.cluster.preflight import Preflight
from sandbox.processes import until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Answer = Callable[[web.Request], Awaitable[web.Response]]


async def told(preflight: Preflight) -> bool:
    return preflight.problem is not None


def asyncio_task(preflight: Preflight) -> asyncio.Task[None]:
    return asyncio.create_task(preflight.run())


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    """The URL of a server that answers everything like this."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def served(answer: Answer) -> AsyncIterator[Cluster]:
    """A client of a server that answers everything like this."""
    async with serving(answer) as url:
        cluster = await Cluster.connect(Access(lambda: ClusterSettings(server=url)))
        try:
            yield cluster
        finally:
            await cluster.aclose()


async def test_a_page_of_a_proxy_is_not_taken_for_an_answer() -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<html>Welcome</html>")

    async with served(page) as cluster:
        with pytest.raises(ApiError, match=r"GET /api/v1/namespaces/games: the answer is not the API server's"):
            await cluster.read_namespace("games")


async def test_a_kubeconfig_that_cannot_be_read_just_when_its_token_was_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"message": "Unauthorized"}, status=401)

    kubeconfig = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    async with serving(refuse) as url:
        kubeconfig.write_text(
            f"{{current-context: c, contexts: [{{name: c, context: {{cluster: c}}}}],"
            f" clusters: [{{name: c, cluster: {{server: '{url}'}}}}]}}"
        )
        cluster = await Cluster.connect(load_access())
        kubeconfig.write_text("{")
        with pytest.raises(ApiError, match="the credentials are refused: kubeconfig") as raised:
            await cluster.read_namespace("games")
        await cluster.aclose()
    assert raised.value.status == 401


@pytest.mark.parametrize("status", [403, 404])
async def test_missing_rights_are_told_where_nobody_says_who_we_are(status: int) -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("selfsubjectreviews"):
            return web.json_response({"message": "no such thing"}, status=status)
        asked = (await request.json())["spec"]["resourceAttributes"]
        return web.json_response({"status": {"allowed": asked["verb"] != "patch"}})

    async with served(answer) as cluster:
        preflight = Preflight(cluster, (), None)
        running = asyncio_task(preflight)
        await until_async(lambda: told(preflight), 10, "the missing rights to be told")
        running.cancel()
    assert preflight.problem == (
        "the operator's account may not patch podlinks.podlink.io in all namespaces, patch podlinks.podlink.io/status"
        " in all namespaces: grant it by a role that is bound to it (the chart has them all)"
    )


async def test_many_missing_rights_are_told_in_a_line() -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("selfsubjectreviews"):
            return web.json_response({"status": {"userInfo": {"username": "gate"}}})
        if request.method == "GET":
            return web.json_response({"message": "forbidden"}, status=403)
        return web.json_response({"status": {"allowed": False}})

    async with served(answer) as cluster:
        preflight = Preflight(cluster, [f"games-{number}" for number in range(50)], ("podlink-system", "podlink"))
        running = asyncio_task(preflight)
        await until_async(lambda: told(preflight), 20, "the missing rights to be told")
        running.cancel()
    assert preflight.problem is not None
    assert preflight.problem.startswith("gate may not list pods in namespace games-0, watch pods in namespace games-0")
    assert f"and {50 * 9 + 3 - 6} more: grant it" in preflight.problem
