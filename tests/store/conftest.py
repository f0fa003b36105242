"""Every test of the store runs against real servers, and the same tests on each topology a client can meet.

The fixture `server` is one of them, started once a session: "valkey", which expires hash fields, "redis", Debian's 7.0,
which cannot, "tls", the same with client certificates, "sentinel" and "cluster". A test that says something of some of
them only carries `@pytest.mark.only_on("valkey", "redis", reason="...")`; it is not made for the others.

With PODLINK_TEST_REDIS (see sandbox.redis_binaries) all of them run that one program: "valkey" and "redis" are then the
same, and there is no "tls" when it was built without.
"""

from __future__ import annotations

import asyncio
import functools
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from podlink import StatefulExecutor, sync
from sandbox import redis_binaries
from sandbox.certificates import write_redis_certificates
from sandbox.processes import until
from sandbox.redis_cluster import ClusterSet
from sandbox.redis_sentinel import SentinelSet
from sandbox.redis_servers import RedisServer
from store.harness import ALL_TOPOLOGIES, Awaited, Topology, Wire, need, orphans

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    import redis

    from sandbox.certificates import RedisCertificates

# No test of the shared servers wants a failover, and a busy machine must not cause one.
NEVER_SECONDS = 60


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "only_on(*topologies, reason): where the fixture `server` makes sense, and why")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("only_on")
    chosen = ALL_TOPOLOGIES
    if marker:
        if not marker.kwargs.get("reason") or not set(marker.args) <= set(ALL_TOPOLOGIES):
            pytest.fail(f"{metafunc.definition.nodeid}: only_on needs some of {ALL_TOPOLOGIES}, and a reason")
        chosen = marker.args
    metafunc.parametrize("server", topologies(chosen), indirect=True, scope="session")


def topologies(wanted: Iterable[str]) -> list[str]:
    """Those that the programs under test make, each once."""
    if (program := redis_binaries.chosen()) is None:
        return list(wanted)
    made = dict.fromkeys(redis_binaries.stand_in(each) if each in redis_binaries.KINDS else each for each in wanted)
    return [each for each in made if each != "tls" or redis_binaries.has_tls(program)]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> RedisCertificates:
    """For servers with TLS, which are all of the kind "redis"."""
    need("redis")
    return write_redis_certificates(tmp_path_factory.mktemp("redis-certificates"))


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Topology]]:
    """Start each topology when it is first asked for, and keep it until the end: to start a Cluster takes seconds."""
    make: dict[str, Callable[[], Topology]] = {
        "valkey": lambda: RedisServer("valkey"),
        "redis": lambda: RedisServer("redis"),
        "tls": lambda: RedisServer("redis", tls=request.getfixturevalue("certificates")),
        "sentinel": lambda: SentinelSet(down_after_seconds=NEVER_SECONDS),
        "cluster": lambda: ClusterSet(node_timeout_seconds=NEVER_SECONDS),
    }
    with ExitStack() as stack:
        yield functools.cache(lambda name: stack.enter_context(make[name]()))


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, servers: Callable[[str], Topology]) -> Topology:
    need("redis" if request.param in ("redis", "tls") else "valkey")
    return servers(request.param)


@pytest.fixture(params=redis_binaries.kinds())
def own_server(request: pytest.FixtureRequest) -> Iterator[Callable[..., RedisServer]]:
    """Makes servers that a test may stop, kill and configure as it likes, with the arguments of RedisServer."""
    need(request.param)
    started: list[RedisServer] = []

    def start(password: str | None = None, **options: Any) -> RedisServer:
        started.append(RedisServer(request.param, password=password, **options))
        return started[-1].start()

    yield start
    for each in started:
        each.close()


@pytest.fixture(scope="session")
def shared_sentinels() -> Iterator[SentinelSet]:
    with SentinelSet(down_after_seconds=3) as running:
        yield running


@pytest.fixture
def sentinels(shared_sentinels: SentinelSet) -> SentinelSet:
    """Servers behind Sentinels that a test may break; they are whole and empty at its start, and know no script."""
    shared_sentinels.heal()
    for each in shared_sentinels.servers:
        each.ask("SCRIPT", "FLUSH")
    with shared_sentinels.client() as client:
        client.flushall()
    return shared_sentinels


@pytest.fixture(scope="session")
def shared_redis_cluster() -> Iterator[ClusterSet]:
    with ClusterSet(node_timeout_seconds=3) as running:
        yield running


@pytest.fixture
def redis_cluster(shared_redis_cluster: ClusterSet) -> ClusterSet:
    """A Cluster that a test may break; it is whole and empty at its start, and counts from there."""
    shared_redis_cluster.heal()
    with shared_redis_cluster.client() as client:
        client.flushall()
    for each in shared_redis_cluster.servers:
        each.ask("CONFIG", "RESETSTAT")
    return shared_redis_cluster


@pytest.fixture
def raw(server: Topology) -> Iterator[redis.Redis]:
    """The keys as any other client sees them; every test starts with none."""
    with server.client() as client:
        client.flushall()
        client.script_flush()
        yield client


@pytest.fixture
def wire(raw: redis.Redis) -> Wire:
    return Wire(raw)


@pytest.fixture(params=["async", "blocking"])
async def executor(request: pytest.FixtureRequest, server: Topology, raw: redis.Redis) -> AsyncIterator[Awaited]:
    """Both executors, one after the other."""
    if request.param == "async":
        async with StatefulExecutor.from_url(server.url) as asynchronous:
            yield Awaited(asynchronous)
    else:
        with sync.StatefulExecutor.from_url(server.url) as blocking:
            yield Awaited(blocking)


@pytest.fixture
async def aexecutor(server: Topology, raw: redis.Redis) -> AsyncIterator[StatefulExecutor]:
    """The asyncio executor, where concurrency matters."""
    async with StatefulExecutor.from_url(server.url) as asynchronous:
        yield asynchronous


@pytest.fixture(params=["async", "blocking"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Awaited]]:
    """Makes an executor of either sort for any URL."""
    made: list[Any] = []

    def make(url: str, **options: Any) -> Awaited:
        kind = StatefulExecutor if request.param == "async" else sync.StatefulExecutor
        made.append(kind.from_url(url, **options))
        return Awaited(made[-1])

    yield make
    for executor in made:
        await (executor.aclose() if isinstance(executor, StatefulExecutor) else asyncio.to_thread(executor.close))


@pytest.fixture
def leaves_orphans() -> None:
    """For tests that write as clients do which keep no load, or reserve load without a link."""


@pytest.fixture(autouse=True)
def everything_adds_up(request: pytest.FixtureRequest) -> Iterator[None]:
    """No hash field and no load outlives its string, and every pod's load is its number of links, after each test."""
    if "raw" not in request.fixturenames or "leaves_orphans" in request.fixturenames:
        yield
        return
    server: Topology = request.getfixturevalue("server")
    yield
    with server.client() as client, sync.StatefulExecutor.from_url(server.url) as blocking:
        problems: list[str] = []

        def adds_up() -> bool:
            problems[:] = orphans(client, blocking, prune=not server.expires_fields)
            return not problems

        # Links may expire while they are counted, and field and string do not go in one step: so ask again.
        try:
            until(adds_up, timeout=20, what="links and loads to add up")
        except TimeoutError:
            pytest.fail("; ".join(problems))
