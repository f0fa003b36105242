"""Every test of the store runs against real servers: a Valkey that expires hash fields, and a Redis 7 that cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from podlink import StatefulExecutor, sync
from sandbox.processes import until
from sandbox.redis_servers import RedisServer, binary
from store.harness import Awaited, Wire, orphans

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    import redis


@pytest.fixture(scope="session", params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    if binary(request.param) is None:
        pytest.skip("no redis-server on PATH; `apt install redis-server` would un-skip it")
    with RedisServer(request.param) as running:
        yield running


@pytest.fixture
def own_server(server: RedisServer) -> Iterator[Callable[..., RedisServer]]:
    """Makes servers of the same kind that a test may stop, kill and configure as it likes."""
    started: list[RedisServer] = []

    def start(password: str | None = None) -> RedisServer:
        started.append(RedisServer(server.kind, password=password).start())
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def raw(server: RedisServer) -> Iterator[redis.Redis]:
    """The keys as any other client sees them; every test starts with none."""
    with server.client() as client:
        client.flushall()
        client.script_flush()
        yield client


@pytest.fixture
def wire(raw: redis.Redis) -> Wire:
    return Wire(raw)


@pytest.fixture(params=["async", "blocking"])
async def executor(request: pytest.FixtureRequest, server: RedisServer, raw: redis.Redis) -> AsyncIterator[Awaited]:
    """Both executors, one after the other."""
    if request.param == "async":
        async with StatefulExecutor.from_url(server.url) as asynchronous:
            yield Awaited(asynchronous)
    else:
        with sync.StatefulExecutor.from_url(server.url) as blocking:
            yield Awaited(blocking)


@pytest.fixture
async def aexecutor(server: RedisServer, raw: redis.Redis) -> AsyncIterator[StatefulExecutor]:
    """The asyncio executor, where concurrency matters."""
    async with StatefulExecutor.from_url(server.url) as asynchronous:
        yield asynchronous


@pytest.fixture
def leaves_orphans() -> None:
    """For tests that write as clients do which keep no load, or reserve load without a link."""


@pytest.fixture(autouse=True)
def everything_adds_up(request: pytest.FixtureRequest) -> Iterator[None]:
    """No hash field and no load outlives its string, and every pod's load is its number of links, after each test."""
    if "raw" not in request.fixturenames or "leaves_orphans" in request.fixturenames:
        yield
        return
    server: RedisServer = request.getfixturevalue("server")
    yield
    with server.client() as client, sync.StatefulExecutor.from_url(server.url) as blocking:
        problems: list[str] = []

        def adds_up() -> bool:
            problems[:] = orphans(client, blocking, prune=server.kind == "redis")
            return not problems

        # Links may expire while they are counted, and field and string do not go in one step: so ask again.
        try:
            until(adds_up, timeout=3, what="links and loads to add up")
        except TimeoutError:
            pytest.fail("; ".join(problems))
