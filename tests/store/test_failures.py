"""What a caller meets when Redis is down, slow, full, locked or not what it should be."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError

from podlink import InvalidArgument, RedisUnavailable, ScriptError, StatefulExecutor, WrongEventLoop, sync
from podlink.store import operations
from podlink.store.aio.queue import MAX_IN_FLIGHT
from podlink.store.batching.exchange import exchange
from podlink.store.batching.outcomes import Lost
from sandbox.processes import until, until_async
from sandbox.redis_servers import RedisServer
from store.harness import (
    LINK,
    LINKS,
    NS,
    ONE_SERVER,
    STATE,
    SVC,
    UID,
    WAYS_TO_LINK,
    Awaited,
    Topology,
    Wire,
    goes_on,
    whole_text,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PASSWORD = "correct-horse"
WRONG = "battery-staple"


async def test_server_that_stops_and_comes_back(
    own_server: Callable[..., RedisServer], connect: Callable[..., Awaited]
) -> None:
    server = own_server()
    executor = connect(server.url)
    await executor.set_linked_pod(NS, UID, SVC, 1)
    # In a thread: the event loop has to go on, to notice that its idle connection is closed.
    await asyncio.to_thread(server.stop)
    # A call that leaves on a connection before its end was noticed may have been applied for all anybody knows. A
    # blocking executor looks whether a connection still lives once it was idle for 50 ms.
    await asyncio.sleep(0.2)
    for _ in range(2):
        with pytest.raises(RedisUnavailable, match="set_linked_pod: Redis is unreachable") as error:
            await executor.set_linked_pod(NS, UID, SVC, 2)
        assert error.value.maybe_applied is False
        assert "was not applied" in str(error.value)
        assert str(server.port) in str(error.value)
    results = await executor.run_many([operations.ping(), operations.run_id()])
    assert [type(result) for result in results] == [RedisUnavailable, RedisUnavailable]

    await asyncio.to_thread(server.start)
    # The server has lost its data and its scripts, and the idle connection is dead: the first call works.
    assert await executor.set_linked_pod(NS, UID, SVC, 2) is None


async def test_server_that_does_not_answer(
    own_server: Callable[..., RedisServer], connect: Callable[..., Awaited]
) -> None:
    server = own_server()
    executor = connect(server.url, timeout_seconds=0.3)
    await executor.set_linked_pod(NS, UID, SVC, 1)
    with server.client() as raw:
        before = Wire(raw).script_calls()
    server.freeze()
    started = time.monotonic()
    with pytest.raises(RedisUnavailable) as error:
        await executor.set_linked_pod(NS, UID, SVC, 2)
    assert time.monotonic() - started < 20
    assert error.value.maybe_applied is True
    assert "may or may not have been applied" in str(error.value)
    server.thaw()
    # It had been applied indeed, once; the late answer does not turn up as the reply to another call.
    assert await executor.get_linked_pod(NS, UID, SVC) == 2
    with server.client() as raw:
        assert Wire(raw).script_calls() == before + 1


async def test_server_that_accepts_nothing(connect: Callable[..., Awaited]) -> None:
    executor = connect("redis://127.0.0.1:1/0")
    with pytest.raises(RedisUnavailable, match=r"127\.0\.0\.1:1") as error:
        await executor.get_linked_pod(NS, UID, SVC)
    assert error.value.maybe_applied is False


async def test_wrong_password_is_told_without_repeating_it(
    own_server: Callable[..., RedisServer], connect: Callable[..., Awaited]
) -> None:
    server = own_server(PASSWORD)
    with pytest.raises(RedisUnavailable, match="refused the user name or the password") as error:
        await connect(f"redis://:{WRONG}@127.0.0.1:{server.port}/0").set_linked_pod(NS, UID, SVC, 1)
    assert WRONG not in whole_text(error.value)
    assert error.value.maybe_applied is False
    with pytest.raises(RedisUnavailable, match="refused the user name or the password") as error:
        await connect(f"redis://127.0.0.1:{server.port}/0").set_linked_pod(NS, UID, SVC, 1)
    assert error.value.maybe_applied is False
    assert await connect(server.url).set_linked_pod(NS, UID, SVC, 1) is None


async def test_key_of_the_wrong_type_names_the_script_and_changes_nothing(executor: Awaited, raw: redis.Redis) -> None:
    raw.rpush(LINK, "no string")
    for call, script in [
        (executor.set_linked_pod(NS, UID, SVC, 1), "statefulSetLink"),
        (executor.try_set_linked_pod(NS, UID, SVC, 1), "statefulTrySetLink"),
        (executor.set_linked_pod_if_absent(NS, UID, SVC, 1), "statefulSetLinkIfAbsent"),
        (executor.compute_linked_pod_if_absent(NS, UID, SVC), "statefulComputeLinkIfAbsent"),
        (executor.remove_linked_pod(NS, UID, SVC), "statefulRemoveLink"),
        (executor.remove_linked_pod_with_id(NS, UID, SVC, 1), "statefulRemoveLinkWithId"),
        (executor.get_linked_pod_if_persist(NS, UID, SVC), "statefulGetLinkIfPersist"),
        (executor.get_linked_pod(NS, UID, SVC), "GET"),
    ]:
        with pytest.raises(ScriptError, match="WRONGTYPE") as error:
            await call
        assert error.value.script == script
        assert script in str(error.value)
        assert LINK in str(error.value)
        assert "WRONGTYPE" in error.value.server_message
    assert raw.keys() == [LINK]


@pytest.mark.parametrize("seconds", [-1, 60])
@pytest.mark.parametrize("way", WAYS_TO_LINK)
async def test_uid_hash_of_the_wrong_type_leaves_no_half_link(
    executor: Awaited, raw: redis.Redis, way: str, seconds: int
) -> None:
    raw.set(LINKS, "no hash")
    with pytest.raises(ScriptError, match="WRONGTYPE"):
        await WAYS_TO_LINK[way](executor, 2, seconds)
    assert sorted(raw.keys()) == sorted([LINKS] if way != "compute" else [LINKS, STATE])
    raw.flushall()


async def test_uid_hash_of_the_wrong_type_leaves_the_link_that_is_there(executor: Awaited, raw: redis.Redis) -> None:
    raw.set(LINK, "1", ex=60)
    raw.set(LINKS, "no hash")
    for call in (
        executor.set_linked_pod(NS, UID, SVC, 2),
        executor.try_set_linked_pod(NS, UID, SVC, 2),
        executor.remove_linked_pod(NS, UID, SVC),
        executor.remove_linked_pod_with_id(NS, UID, SVC, 1),
    ):
        with pytest.raises(ScriptError, match="WRONGTYPE"):
            await call
    assert raw.get(LINK) == "1"
    assert sorted(raw.keys()) == sorted([LINK, LINKS])
    raw.flushall()


async def test_read_only_replica_is_unavailable_not_a_script_error(
    own_server: Callable[..., RedisServer], connect: Callable[..., Awaited]
) -> None:
    server = own_server()
    executor = connect(server.url)
    await executor.set_linked_pod(NS, UID, SVC, 1)
    with server.client() as raw:
        raw.replicaof("127.0.0.1", "1")
        with pytest.raises(RedisUnavailable, match="cannot serve now") as error:
            await executor.set_linked_pod(NS, UID, SVC, 2)
        assert error.value.maybe_applied is False
        assert await executor.get_linked_pod(NS, UID, SVC) == 1
        raw.replicaof("NO", "ONE")
    assert await executor.set_linked_pod(NS, UID, SVC, 2) == 1


async def test_full_server_is_unavailable(
    own_server: Callable[..., RedisServer], connect: Callable[..., Awaited]
) -> None:
    server = own_server()
    executor = connect(server.url)
    with server.client() as raw:
        raw.config_set("maxmemory", "1")
        with pytest.raises(RedisUnavailable, match="cannot serve now") as error:
            await executor.set_linked_pod(NS, UID, SVC, 2)
        assert error.value.maybe_applied is False
        assert raw.keys() == []


@pytest.mark.only_on(*ONE_SERVER, reason="where connections are counted, only ours may come and go")
async def test_tasks_share_one_connection(server: Topology, raw: redis.Redis) -> None:
    before = raw.info("stats")["total_connections_received"]
    async with StatefulExecutor.from_url(server.url) as executor:
        told = await asyncio.gather(*(executor.set_linked_pod(NS, f"u{n}", SVC, n) for n in range(300)))
    assert told == [None] * 300
    assert raw.info("stats")["total_connections_received"] - before == 1


@pytest.mark.only_on(*ONE_SERVER, reason="where connections are counted, only ours may come and go")
def test_threads_share_a_few_connections(server: Topology, raw: redis.Redis) -> None:
    before = raw.info("stats")["total_connections_received"]
    executor = sync.StatefulExecutor.from_url(server.url, max_connections=3)
    with executor, ThreadPoolExecutor(20) as threads:
        told = list(threads.map(lambda n: executor.set_linked_pod(NS, f"u{n}", SVC, n), range(200)))
    assert told == [None] * 200
    assert raw.info("stats")["total_connections_received"] - before <= 3


async def test_pipelines_to_a_server_that_does_not_answer_are_bounded(own_server: Callable[..., RedisServer]) -> None:
    server = own_server()
    async with StatefulExecutor.from_url(server.url, timeout_seconds=0.5) as executor:
        await executor.run(operations.ping())
        server.freeze()
        links = [operations.set_linked_pod(NS, f"u{n}", SVC, 0) for n in range(20)]
        outcomes = await asyncio.gather(*(executor.run_many([link]) for link in links))
        unavailable = [error for (error,) in outcomes if isinstance(error, RedisUnavailable)]
        sent = [error for error in unavailable if error.maybe_applied]
        assert (len(unavailable), len(sent)) == (20, MAX_IN_FLIGHT)
        assert all("no answer within 0.5 seconds" in str(error) for error in sent)
        # The connection was left, and a new one gets no further.
        ((error,),) = await asyncio.gather(executor.run_many(links[:1]))
        assert isinstance(error, RedisUnavailable)
        assert error.maybe_applied is False
        assert "no connection within 0.5 seconds" in str(error)
        server.thaw()
        await until_async(lambda: executor.run(operations.ping()), 5, "an answer again", retry_on=(RedisUnavailable,))


async def test_calls_behind_a_stalled_batch_fail_in_time_and_were_not_applied(
    own_server: Callable[..., RedisServer],
) -> None:
    server = own_server()
    async with StatefulExecutor.from_url(server.url, timeout_seconds=3) as executor:
        await executor.set_linked_pod(NS, "first", SVC, 0)
        server.freeze()
        loop = asyncio.get_running_loop()
        stalled = asyncio.create_task(executor.set_linked_pod(NS, "stalled", SVC, 0))
        for _ in range(5):  # turns of the loop, in which the first one leaves
            await asyncio.sleep(0)
        started = loop.time()
        behind = await asyncio.gather(
            *(executor.set_linked_pod(NS, f"u{n}", SVC, 0) for n in range(3)), return_exceptions=True
        )
        assert loop.time() - started < 5.5
        assert [(type(error), error.maybe_applied) for error in behind] == [(RedisUnavailable, False)] * 3
        with pytest.raises(RedisUnavailable) as error:
            await stalled
        assert error.value.maybe_applied is True
        server.thaw()
        assert await executor.run(operations.ping()) is True


def test_thread_waiting_for_a_free_connection_is_bounded(own_server: Callable[..., RedisServer]) -> None:
    server = own_server()
    executor = sync.StatefulExecutor.from_url(server.url, max_connections=1, timeout_seconds=0.3, socket_timeout=20)
    with executor, ThreadPoolExecutor(4) as threads:
        executor.run(operations.ping())
        server.freeze()
        calls = [threads.submit(executor.get_linked_pod, NS, UID, SVC) for _ in range(4)]
        until(lambda: [call.done() for call in calls].count(True) == 3, 5, "three of four calls to give up")
        server.thaw()
        outcomes = [call.exception() for call in calls]
    assert outcomes.count(None) == 1
    for error in filter(None, outcomes):
        assert isinstance(error, RedisUnavailable)
        assert error.maybe_applied is False
        assert "no connection within 0.3 seconds" in str(error)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (BusyLoadingError("Redis is loading the dataset in memory"), "cannot serve now: Redis is loading"),
        (AuthenticationError("Authentication required."), "refused the user name or the password"),
    ],
)
def test_refusal_that_ends_the_connection_was_not_applied(answer: RedisError, says: str) -> None:
    steps = exchange([operations.set_linked_pod(NS, UID, SVC, 1)])
    next(steps)
    with pytest.raises(StopIteration) as end:
        steps.send([Lost(answer, sent=True)])
    (error,) = end.value.value
    assert isinstance(error, RedisUnavailable)
    assert says in str(error)
    assert error.maybe_applied is False


async def test_cancelled_call_leaves_the_executor_usable(own_server: Callable[..., RedisServer]) -> None:
    server = own_server()
    async with StatefulExecutor.from_url(server.url) as executor:
        await executor.run(operations.ping())
        server.freeze()
        task = asyncio.create_task(executor.get_linked_pod(NS, UID, SVC))
        done, _ = await asyncio.wait([task], timeout=0.2)
        assert not done
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.thaw()
        # Were the connection used again, PONG would meet the answer the cancelled call had waited for.
        assert await executor.run(operations.ping()) is True


async def test_a_client_that_retries_by_itself_does_not_send_a_script_twice(
    own_server: Callable[..., RedisServer],
) -> None:
    server = own_server()
    client = redis.asyncio.Redis(port=server.port)
    assert client.get_retry().get_retries() > 0
    async with StatefulExecutor(client, timeout_seconds=0.3) as executor:
        await executor.set_linked_pod(NS, UID, SVC, 1)
        with server.client() as raw:
            before = Wire(raw).script_calls()
            server.freeze()
            with pytest.raises(RedisUnavailable):
                await executor.set_linked_pod(NS, UID, SVC, 2)
            server.thaw()
            until(lambda: raw.get(LINK) == "2", 5, "the call to be applied")
            assert Wire(raw).script_calls() == before + 1


@pytest.mark.only_on(*ONE_SERVER, reason="the client passed in is one of a plain server")
async def test_client_passed_in_stays_open(server: Topology, raw: redis.Redis) -> None:
    client = redis.asyncio.Redis(port=server.port, max_connections=3, decode_responses=True)
    async with StatefulExecutor(client) as executor:
        await asyncio.gather(*(executor.set_linked_pod(NS, f"u{n}", SVC, 0) for n in range(50)))
        assert await executor.get_linked_services(NS, "u0") == {SVC: 0}
        await executor.set_service_state(NS, SVC, 0, "Ready")
        assert await executor.get_service_state(NS, SVC) == {0: "Ready"}
    assert await client.ping()
    await client.aclose()


@pytest.mark.only_on(*ONE_SERVER, reason="the client passed in is one of a plain server")
@pytest.mark.parametrize("settings", [{"decode_responses": True}, {"protocol": 2}, {"protocol": 3}])
def test_blocking_client_passed_in_with_any_settings(
    server: Topology, raw: redis.Redis, settings: dict[str, Any]
) -> None:
    with redis.Redis(port=server.port, **settings) as client:
        with sync.StatefulExecutor(client) as executor:
            executor.set_service_state(NS, SVC, 0, "Ready")
            assert executor.get_service_state(NS, SVC) == {0: "Ready"}
            assert executor.compute_linked_pod_if_absent(NS, UID, SVC) == 0
            assert executor.get_service(NS, SVC).loads == {0: 1}
            assert executor.run(operations.run_id()) == raw.info("server")["run_id"]
            assert executor.run(operations.scan(0, "*", 100))[0] == 0
        assert client.ping()


def test_connections_of_a_client_passed_in_are_left_to_it(own_server: Callable[..., RedisServer]) -> None:
    with redis.Redis(port=own_server().port, max_connections=2) as client:
        with sync.StatefulExecutor(client) as executor, ThreadPoolExecutor(4) as threads:
            assert list(threads.map(lambda n: executor.set_linked_pod(NS, f"u{n}", SVC, n), range(50))) == [None] * 50
            with client.pubsub() as pubsub:
                pubsub.subscribe("anything")
                assert client.ping()
            assert client.info("clients")["connected_clients"] in {3, 4}
        until(lambda: client.info("clients")["connected_clients"] <= 2, 5, "the executor's connections to be gone")


def test_a_closed_executor_stays_closed(server: Topology, raw: redis.Redis) -> None:
    with sync.StatefulExecutor.from_url(server.url) as executor:
        executor.set_linked_pod(NS, UID, SVC, 1)
    for call in (executor.get_linked_pod, executor.compute_linked_pod_if_absent):
        with pytest.raises(RedisUnavailable, match="the executor was closed") as error:
            call(NS, UID, SVC)
        assert error.value.maybe_applied is False


@pytest.mark.parametrize("kind", [StatefulExecutor, sync.StatefulExecutor])
@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://:battery-staple@localhost", "has the scheme 'http'"),
        ("redis+sentinels://localhost", "has the scheme 'redis+sentinels'"),
        ("unix+cluster://localhost", "has the scheme 'unix+cluster'"),
        ("redis+sentinel://:battery-staple@localhost", "names no service"),
        ("redis+sentinel://localhost/main/x", "names the database 'x', which is no number"),
        ("redis+sentinel://:battery-staple@localhost:x,localhost/main", "cannot be read"),
        ("redis+sentinel://a,,b/main", "cannot be read"),
        ("redis+cluster://", "cannot be read"),
        ("redis+cluster://:battery-staple@localhost/1", "names the database '1', and a cluster has none"),
        ("localhost", "has no scheme"),
        ("", "has no scheme"),
        ("redis://:battery-staple@localhost/x", "names the database 'x', which is no number"),
        ("redis://localhost/-1", "names the database '-1', which is no number"),
        ("redis://localhost/0/1", "names the database '0/1', which is no number"),
        ("redis://:battery-staple@localhost:battery-staple", "cannot be read"),
        ("redis://:battery-staple@localhost:99999", "cannot be read"),
        ("redis://[::1", "cannot be read"),
        (None, "cannot be read"),
        (17, "cannot be read"),
        ("redis://localhost?socket_timeout=soon", "socket_timeout"),
        ("redis://localhost?nonsense=1", "nonsense is no setting"),
        ("redis+sentinel://localhost/main?nonsense=1", "nonsense is no setting"),
        ("redis+cluster://localhost?nonsense=1", "nonsense is no setting"),
        ("redis+cluster://localhost?db=0", "names the database '0', and a cluster has none"),
        ("redis+sentinel://localhost/main?db=x", "names the database 'x', which is no number"),
        ("redis+sentinel://localhost/main/1?db=2", "names two databases, 1 and 2"),
        ("redis://localhost/1?db=2", "names two databases, 1 and 2"),
        ("redis://localhost?retry=3", "retry must be a redis."),
        (f"redis://localhost?ssl_ca_certs={__file__}", "ssl_ca_certs is for TLS: use rediss://"),
        (f"redis+cluster://localhost?ssl_ca_certs={__file__}", "ssl_ca_certs is for TLS: use rediss://"),
        *(
            (f"{scheme}://{user}:4711{end}battery-staple{more}@localhost:6379/0", "percent-encode / ? # @ :")
            for scheme in ("redis", "rediss", "redis+sentinel", "redis+cluster")
            for user in ("", "gate")
            for end in "/?#"
            for more in ("", "=x")
        ),
    ],
)
def test_url_that_cannot_be_used_is_refused_at_once(kind: Any, url: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(says)) as error:
        kind.from_url(url)
    assert error.value.argument == "url"
    assert WRONG not in whole_text(error.value)
    if "cannot be read" in says or "scheme" in says:
        assert "redis://host:port/db, rediss://host:port/db or unix:///path/to/socket" in str(error.value)


@pytest.mark.parametrize("kind", [StatefulExecutor, sync.StatefulExecutor])
@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"timeout_seconds": -1}, "timeout_seconds"),
        ({"timeout_seconds": None}, "timeout_seconds"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds"),
        ({"timeout_seconds": float("inf")}, "timeout_seconds"),
        ({"max_connections": 0}, "max_connections"),
        ({"max_connections": "5"}, "max_connections"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"retry": 3}, "retry"),
        ({"ssl_ca_certs": __file__}, "ssl_ca_certs"),
        ({"durability": "replicas"}, "durability"),
    ],
)
def test_limits_that_make_no_sense_are_refused(kind: Any, options: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        kind.from_url("redis://localhost", **options)
    assert error.value.argument == argument


@pytest.mark.parametrize(
    ("kind", "other", "query", "options"),
    [
        (StatefulExecutor, "blocking", "?max_connections=5", {}),
        (StatefulExecutor, "blocking", "", {"max_connections": 5}),
        (sync.StatefulExecutor, "asyncio", "", {"cache": True}),
        (sync.StatefulExecutor, "asyncio", "", {"cache_entries": 5}),
    ],
)
def test_what_the_other_executor_has_is_told_so(kind: Any, other: str, query: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=f"is of the {other} executor"):
        kind.from_url(f"redis://localhost{query}", **options)


def test_wrong_kind_of_client_is_refused() -> None:
    blocking = redis.Redis()
    with pytest.raises(InvalidArgument, match=r"podlink\.sync\.StatefulExecutor") as error:
        StatefulExecutor(blocking)  # type: ignore[arg-type]
    assert error.value.argument == "client"
    with pytest.raises(InvalidArgument, match=r"use podlink\.StatefulExecutor") as error:
        sync.StatefulExecutor(redis.asyncio.Redis())  # type: ignore[arg-type]
    assert error.value.argument == "client"


def test_tls_and_unix_urls_are_understood() -> None:
    for url in ("rediss://user:secret@redis.example:6380/2", "unix:///run/redis.sock?db=1"):
        with sync.StatefulExecutor.from_url(url) as executor:
            assert isinstance(executor, sync.StatefulExecutor)


async def test_unix_socket(
    own_server: Callable[..., RedisServer], connect: Callable[..., Awaited], tmp_path: Any
) -> None:
    executor = connect(f"unix://{tmp_path}/missing.sock")
    with pytest.raises(RedisUnavailable, match=r"missing\.sock"):
        await executor.get_linked_pod(NS, UID, SVC)


def test_redis_errors_never_reach_the_caller_bare() -> None:
    assert not issubclass(RedisUnavailable, RedisError)
    assert not issubclass(ScriptError, RedisError)


class Forgetful(CredentialProvider):
    """Does not know the password the first time."""

    def __init__(self) -> None:
        self._asked = 0

    def get_credentials(self) -> tuple[str]:
        self._asked += 1
        if self._asked == 1:
            raise ZeroDivisionError("the token service is away")
        return (PASSWORD,)


async def test_whatever_connecting_raises_is_told_and_passes() -> None:
    with RedisServer(password=PASSWORD) as server:
        url = f"redis://127.0.0.1:{server.port}"
        async with StatefulExecutor.from_url(url, credential_provider=Forgetful()) as executor:
            with pytest.raises(RedisUnavailable, match="the token service is away") as error:
                await executor.get_linked_pod(NS, UID, SVC)
            assert error.value.maybe_applied is False
            assert await goes_on(lambda: executor.get_linked_pod(NS, UID, SVC)) is None


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_all_connections(own_server: Callable[..., RedisServer]) -> None:
    server = own_server()
    with sync.StatefulExecutor.from_url(server.url, max_connections=1) as executor, ThreadPoolExecutor(1) as threads:
        executor.set_linked_pod(NS, UID, SVC, 5)
        server.freeze()
        waiting = threads.submit(executor.get_linked_pod, NS, UID, SVC)
        until(lambda: not server_has_free(executor), 20, "the only connection to be in use")
        told, telling = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(
            target=lambda: telling.send(executor.get_linked_pod(NS, UID, SVC))
        )
        child.start()
        server.thaw()
        assert waiting.result() == 5
        assert told.poll(20)
        assert told.recv() == 5
        child.join()


def server_has_free(executor: sync.StatefulExecutor) -> bool:
    server = executor._server
    assert server is not None
    return server._permits._free.qsize() > 0


ANY_CALL: list[Callable[[StatefulExecutor], Awaitable[Any]]] = [
    lambda executor: executor.set_linked_pod(NS, UID, SVC, 1),
    lambda executor: executor.get_linked_pod(NS, UID, SVC),
    lambda executor: executor.set_linked_pods(NS, {UID: 1}, SVC),
    lambda executor: executor.run_many([operations.get_linked_pod(NS, UID, SVC)]),
    lambda executor: executor.nodes(),
    lambda executor: executor.aclose(),
]


@pytest.mark.only_on("valkey", "cluster", reason="what the executor is bound to does not depend on the login")
@pytest.mark.parametrize("cache", [False, True], ids=["", "cached"])
def test_a_second_event_loop_is_refused_by_name(server: Topology, raw: redis.Redis, cache: bool) -> None:
    executor = StatefulExecutor.from_url(server.url, cache=cache)

    async def call(make: Callable[[StatefulExecutor], Awaitable[Any]]) -> Any:
        return await make(executor)

    with asyncio.Runner() as first:
        assert first.run(call(ANY_CALL[0])) is None
        for make in ANY_CALL:
            # In the same thread, and in another one while the first loop could run.
            for run in (asyncio.run, lambda coroutine: in_a_thread(lambda: asyncio.run(coroutine))):
                with pytest.raises(WrongEventLoop, match="belongs to another event loop"):
                    run(call(make))
        assert first.run(call(ANY_CALL[1])) == 1, "it goes on in its own"
        first.run(call(ANY_CALL[-1]))


def in_a_thread(run: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(run).result()


async def test_a_server_with_too_many_clients_says_so(
    own_server: Callable[..., RedisServer], connect: Callable[..., Awaited]
) -> None:
    server, unhandled = own_server(), list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    with server.client() as only_client:
        only_client.config_set("maxclients", 1)
        # Whether the write of the login fails before the refusal is read differs from time to time.
        for _ in range(20):
            with pytest.raises(RedisUnavailable, match=r"Redis cannot serve now: .*max number of clients") as error:
                await connect(server.url).get_linked_pod(NS, UID, SVC)
            assert not error.value.maybe_applied
        only_client.config_set("maxclients", 100)
        assert await connect(server.url).get_linked_pod(NS, UID, SVC) is None
    del error
    gc.collect()
    assert unhandled == []
