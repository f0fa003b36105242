"""In a Redis Cluster: callers see nothing of slots, nor of their moves; a lost server fails its own calls alone."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
import time
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from podlink import PartialFailure, RedisUnavailable, ScriptError, StatefulExecutor, sync
from podlink.store.operations import scripts
from sandbox.processes import free_port, until, until_async
from sandbox.redis_cluster import ClusterSet, slot_of
from sandbox.redis_servers import RedisServer
from store.harness import LINK, LINKS, LOAD, NS, PATIENCE_SECONDS, STATE, SVC, UID, Awaited, goes_on, link_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NEVER_SECONDS = 60
THE_END = "the end of what is watched"


@contextmanager
def watched(server: RedisServer, seen: list[list[str]]) -> Iterator[None]:
    """Collect the keys of every command the server runs, those of scripts included (by MONITOR)."""
    with server.client() as client, client.monitor() as monitor:

        def listen() -> None:
            while THE_END not in (told := str(monitor.connection.read_response())):
                seen.append(keys_of(re.findall(r'"((?:[^"\\]|\\.)*)"', told)))

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield
        finally:
            server.ask("ECHO", THE_END)
            thread.join(10)
    assert not thread.is_alive()


def keys_of(words: list[str]) -> list[str]:
    """The keys of one command: a script may be told further ones as arguments."""
    if words and words[0].upper() in {"EVAL", "EVALSHA"}:
        return words[3 : 3 + int(words[2])]
    return [word for word in words if word.startswith("sf:{")]


def seen_errors(server: RedisServer) -> str:
    """The codes of the errors the server has answered with."""
    return " ".join(server.ask("INFO", "errorstats"))


def times_asked(server: RedisServer, command: str) -> int:
    """How often the server was given a command."""
    return int(server.ask("INFO", "commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


def reads(server: RedisServer) -> int:
    """How often the server found something to read on the connection of a client."""
    return int(server.ask("INFO", "stats")["total_reads_processed"])


async def test_no_call_spans_slots(redis_cluster: ClusterSet, connect: Callable[..., Awaited]) -> None:
    executor = connect(redis_cluster.url)
    seen: list[list[str]] = []
    first, second, third = redis_cluster.primaries()
    uids = [f"u{number}" for number in range(20)]
    with watched(first, seen), watched(second, seen), watched(third, seen):
        for number in range(3):
            await executor.set_service_state(NS, SVC, number, "Ready", version="7")
            await executor.set_workload_state(NS, f"svc{number}", "Available")
        assert len(await executor.get_workload_states(NS, ["svc0", "svc1", "svc2"])) == 3
        for uid in uids:
            assert await executor.compute_linked_pod_if_absent(NS, uid, SVC) in {0, 1, 2}
            assert await executor.set_linked_pod(NS, uid, SVC, 1, persist_seconds=60) in {0, 1, 2}
            assert await executor.try_set_linked_pod(NS, uid, SVC, 2) == (True, 2)
            assert await executor.set_linked_pod_if_absent(NS, uid, SVC, 1) == 2
        assert await executor.get_linked_pods(NS, uids, SVC) == {2: uids}
        assert (await executor.get_service(NS, SVC)).loads == {0: 0, 1: 0, 2: 20}
        assert await executor.remove_linked_pod(NS, uids[0], SVC, persist_seconds=60) is True
        assert await executor.remove_linked_pod_with_id(NS, uids[1], SVC, 2) is True
        await executor.set_linked_pods(NS, dict.fromkeys(uids, 0), SVC)
        assert await executor.compute_linked_pods_if_absent(NS, uids, SVC) == dict.fromkeys(uids, 0)
        assert await executor.remove_linked_pods(NS, uids, SVC) == dict.fromkeys(uids, True)
    assert sum(map(bool, seen)) > 200
    assert [keys for keys in seen if len(set(map(slot_of, keys))) > 1] == []


@pytest.fixture(params=["ip", "unknown-endpoint", "hostname"])
def redirect(request: pytest.FixtureRequest, redis_cluster: ClusterSet) -> Iterator[Callable[[], None]]:
    """Has the servers name each other in redirections in one way: by address, by nothing, by "?"."""

    def say(kind: str) -> None:
        for server in redis_cluster.servers:
            server.ask("CONFIG", "SET", "cluster-preferred-endpoint-type", kind)

    yield lambda: say(request.param)
    say("ip")


async def test_moved_slots_are_invisible(
    redis_cluster: ClusterSet, connect: Callable[..., Awaited], redirect: Callable[[], None]
) -> None:
    executor = connect(redis_cluster.url)
    for number in range(30):
        await executor.set_linked_pod(NS, f"u{number}", SVC, number)
    redirect()
    for number in range(0, 30, 3):
        holder = redis_cluster.primary_of(link_key(number))
        target = next(server for server in redis_cluster.primaries() if server is not holder)
        await asyncio.to_thread(redis_cluster.move_slot, slot_of(link_key(number)), target)
    for number in range(30):
        assert await executor.set_linked_pod(NS, f"u{number}", SVC, number) == number
        assert await executor.get_linked_pod(NS, f"u{number}", SVC) == number
    assert len(await executor.get_linked_pods(NS, [f"u{number}" for number in range(30)], SVC)) == 30
    assert "MOVED" in " ".join(map(seen_errors, redis_cluster.primaries()))


async def test_a_slot_on_its_way_is_served_from_both_ends(
    redis_cluster: ClusterSet, connect: Callable[..., Awaited], redirect: Callable[[], None]
) -> None:
    executor = connect(redis_cluster.url)
    services = [f"svc{number}" for number in range(8)]
    for pod, service in enumerate(services):
        await executor.set_linked_pod(NS, UID, service, pod)
    redirect()
    slot = slot_of(LINKS)
    source = redis_cluster.primary_of_slot(slot)
    target = next(server for server in redis_cluster.primaries() if server is not source)
    await asyncio.to_thread(redis_cluster.open_slot, slot, target)
    await asyncio.to_thread(redis_cluster.carry_keys, slot, target, 4)
    # Some strings are here, some there; each is found (ASK).
    assert [await executor.get_linked_pod(NS, UID, service) for service in services] == list(range(8))
    assert "ASK" in seen_errors(source)
    # Keys that are apart cannot be used together (TRYAGAIN); the call waits until they are together again.
    moves = [asyncio.create_task(executor.set_linked_pod(NS, UID, service, 9)) for service in services]
    await until_async(
        lambda: "TRYAGAIN" in seen_errors(source) + seen_errors(target), PATIENCE_SECONDS, "a call to be put off"
    )
    await asyncio.to_thread(redis_cluster.carry_keys, slot, target, 100)
    assert await asyncio.gather(*moves) == list(range(8))
    # So cannot one that is nowhere yet: a new link waits until the slot is where it is going to be.
    target.ask("CONFIG", "RESETSTAT")
    new = asyncio.create_task(executor.set_linked_pod(NS, UID, "new", 1))
    await until_async(lambda: "TRYAGAIN" in seen_errors(target), PATIENCE_SECONDS, "the call to be put off")
    await asyncio.to_thread(redis_cluster.close_slot, slot, target)
    assert await new is None
    assert await executor.get_linked_services(NS, UID) == dict.fromkeys(services, 9) | {"new": 1}


@pytest.mark.parametrize("first", ["hash", "string"])
@pytest.mark.parametrize("how", ["async", "blocking"])
async def test_links_are_listed_whole_while_their_keys_move(redis_cluster: ClusterSet, first: str, how: str) -> None:
    async with StatefulExecutor.from_url(redis_cluster.url) as executor:
        await executor.set_linked_pod(NS, UID, SVC, 5)
        slot, source = slot_of(LINK), redis_cluster.primary_of(LINK)
        target = next(server for server in redis_cluster.primaries() if server is not source)
        redis_cluster.open_slot(slot, target)
        source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", LINKS if first == "hash" else LINK)
        with sync.StatefulExecutor.from_url(redis_cluster.url, timeout_seconds=2) as hasty:
            with pytest.raises(RedisUnavailable, match="on their way to another server") as error:
                hasty.get_linked_services(NS, UID)
            assert error.value.maybe_applied is False
        with sync.StatefulExecutor.from_url(redis_cluster.url) as blocking:
            if how == "async":
                listing = asyncio.create_task(executor.get_linked_services(NS, UID))
            else:
                listing = asyncio.create_task(asyncio.to_thread(blocking.get_linked_services, NS, UID))
            await asyncio.to_thread(redis_cluster.carry_keys, slot, target)
            await asyncio.to_thread(redis_cluster.close_slot, slot, target)
            assert await listing == {SVC: 5}
        assert await executor.get_linked_services(NS, UID) == {SVC: 5}


async def test_resharding_under_load_is_invisible(redis_cluster: ClusterSet, connect: Callable[..., Awaited]) -> None:
    executor = connect(redis_cluster.url)
    for number in range(200):
        await executor.set_linked_pod(NS, f"u{number}", SVC, number)
    moving = True
    wrong: list[object] = []

    async def use(first: int) -> int:
        calls = 0
        while moving:
            for number in range(first, 200, 20):
                uid, calls = f"u{number}", calls + 1
                told = (
                    await executor.set_linked_pod(NS, uid, SVC, number),
                    await executor.get_linked_pod(NS, uid, SVC),
                    await executor.get_linked_services(NS, uid),
                )
                if told != (number, number, {SVC: number}):
                    wrong.append(told)
        return calls

    users = [asyncio.create_task(use(first)) for first in range(20)]
    slots = [slot_of(STATE), *(slot_of(link_key(number)) for number in range(0, 200, 10))]
    targets = itertools.cycle(redis_cluster.primaries())
    for slot in slots:
        await asyncio.to_thread(redis_cluster.move_slot, slot, next(targets))
    moving = False
    assert min(await asyncio.gather(*users)) > 0
    assert wrong == []
    assert (await executor.get_service(NS, SVC)).loads == dict.fromkeys(range(200), 1)


async def test_bulk_reads_go_to_each_server_together(
    redis_cluster: ClusterSet, connect: Callable[..., Awaited]
) -> None:
    executor = connect(redis_cluster.url)
    uids = [f"u{number}" for number in range(300)]
    await executor.set_linked_pods(NS, {uid: number % 7 for number, uid in enumerate(uids)}, SVC)
    before = [reads(server) for server in redis_cluster.primaries()]
    found = await executor.get_linked_pods(NS, uids, SVC)
    after = [reads(server) for server in redis_cluster.primaries()]
    assert found == {pod: uids[pod::7] for pod in range(7)}
    # A hundred uids each. A few reads are this test's own, and those of a replica's acknowledgements.
    assert max(later - earlier for earlier, later in zip(before, after, strict=True)) < 50


async def test_scripts_are_loaded_again_only_where_they_were_forgotten(
    redis_cluster: ClusterSet, connect: Callable[..., Awaited]
) -> None:
    executor = connect(redis_cluster.url)
    for number in range(30):
        await executor.set_linked_pod(NS, f"u{number}", SVC, number)
    forgetful, *others = redis_cluster.primaries()
    forgetful.ask("SCRIPT", "FLUSH")
    for server in redis_cluster.primaries():
        server.ask("CONFIG", "RESETSTAT")
    for number in range(30):
        assert await executor.set_linked_pod(NS, f"u{number}", SVC, number + 1) == number
    forgetful.ask("SCRIPT", "FLUSH")
    told = await asyncio.gather(*(executor.set_linked_pod(NS, f"u{number}", SVC, 0) for number in range(30)))
    assert told == list(range(1, 31))
    assert times_asked(forgetful, "script|load") >= 2
    assert [times_asked(server, "script|load") for server in others] == [0, 0]
    assert forgetful.ask("SCRIPT", "EXISTS", scripts.SET_LINK.sha1) == [1]


@pytest.mark.parametrize("lose", [RedisServer.kill, RedisServer.freeze], ids=["kill", "freeze"])
async def test_calls_follow_a_failover(
    redis_cluster: ClusterSet, connect: Callable[..., Awaited], lose: Callable[[RedisServer], None]
) -> None:
    executor = connect(redis_cluster.url, timeout_seconds=1)
    careful = connect(redis_cluster.url, timeout_seconds=20, durability="replicated")
    for number in range(30):
        await careful.set_linked_pod(NS, f"u{number}", SVC, number)
    lost = redis_cluster.primary_of(link_key(0))
    lose(lost)
    await asyncio.to_thread(redis_cluster.await_failover, lost)
    for number in range(30):
        assert await goes_on(lambda n=number: executor.get_linked_pod(NS, f"u{n}", SVC)) == number
        assert await goes_on(lambda n=number: executor.set_linked_pod(NS, f"u{n}", SVC, n)) == number
    await asyncio.to_thread(redis_cluster.heal)
    # The promoted one has a replica again.
    assert await goes_on(lambda: careful.set_linked_pod(NS, "u0", SVC, 7)) in {0, 7}


async def test_a_server_that_hangs_fails_its_own_calls_alone(
    redis_cluster: ClusterSet, connect: Callable[..., Awaited]
) -> None:
    executor = connect(redis_cluster.url, timeout_seconds=0.5)
    pods = {f"u{number}": number for number in range(60)}
    await executor.set_linked_pods(NS, pods, SVC)
    hung = next(server for server in redis_cluster.primaries() if server is not redis_cluster.primary_of(STATE))
    theirs = {uid for uid, number in pods.items() if redis_cluster.primary_of(link_key(number)) is hung}
    hung.freeze()
    with pytest.raises(PartialFailure) as failure:
        await executor.set_linked_pods_if_absent(NS, dict.fromkeys(pods, 99), SVC)
    assert set(failure.value.errors) == theirs
    assert {type(error) for error in failure.value.errors.values()} == {RedisUnavailable}
    assert failure.value.results == {uid: number for uid, number in pods.items() if uid not in theirs}


async def test_links_of_cancelled_callers_are_booked(redis_cluster: ClusterSet) -> None:
    async with StatefulExecutor.from_url(redis_cluster.url) as executor:
        await executor.set_service_state(NS, SVC, 0, "Ready")
        for turns in range(40):
            calls = [
                asyncio.ensure_future(call)
                for number in range(10)
                for call in (
                    executor.set_linked_pod(NS, f"set-{turns}-{number}", SVC, 0),
                    executor.compute_linked_pod_if_absent(NS, f"computed-{turns}-{number}", SVC),
                )
            ]
            # Cancelled later and later: in each of the steps that a call has.
            for _ in range(turns):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
    with redis_cluster.client() as client:
        assert int(client.hget(LOAD, "0") or 0) == sum(
            f"{{{NS}:lk:" in key and key.endswith("}") for key in client.keys("sf:*")
        )


async def test_one_address_that_answers_is_enough(redis_cluster: ClusterSet, connect: Callable[..., Awaited]) -> None:
    port = redis_cluster.primaries()[1].port
    executor = connect(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{port}")
    assert await executor.set_linked_pod(NS, UID, SVC, 1) is None


async def test_no_address_answers(connect: Callable[..., Awaited]) -> None:
    port = free_port()
    executor = connect(f"redis+cluster://127.0.0.1:{port}", timeout_seconds=2)
    with pytest.raises(RedisUnavailable, match=str(port)) as error:
        await executor.set_linked_pod(NS, UID, SVC, 1)
    assert error.value.maybe_applied is False


async def test_a_server_that_is_no_cluster_says_so(
    own_server: Callable[..., RedisServer], connect: Callable[..., Awaited]
) -> None:
    executor = connect(f"redis+cluster://127.0.0.1:{own_server().port}", timeout_seconds=2)
    with pytest.raises(RedisUnavailable, match=r"(?i)cluster") as error:
        await executor.set_linked_pod(NS, UID, SVC, 1)
    assert error.value.maybe_applied is False


@pytest.mark.parametrize("lose", [RedisServer.freeze, RedisServer.kill], ids=["freeze", "kill"])
async def test_an_executor_that_starts_while_a_server_is_away_serves_the_others_slots(
    lose: Callable[[RedisServer], None], connect: Callable[..., Awaited]
) -> None:
    with ClusterSet(node_timeout_seconds=NEVER_SECONDS) as cluster:
        numbers = {cluster.primary_of(link_key(number)): number for number in range(100)}
        for lost in cluster.primaries():
            others = [number for server, number in numbers.items() if server is not lost]
            lose(lost)
            executor = connect(cluster.url, timeout_seconds=3)
            for number in others:
                await executor.set_linked_pod_if_absent(NS, f"u{number}", SVC, number)
            assert [await executor.get_linked_pod(NS, f"u{number}", SVC) for number in others] == others
            if not lost.process.alive:
                break  # whatever it was to the client, none of the others may follow
            lost.thaw()


def test_no_call_waits_for_every_server_in_turn() -> None:
    with (
        ClusterSet(node_timeout_seconds=NEVER_SECONDS) as cluster,
        sync.StatefulExecutor.from_url(cluster.url, timeout_seconds=1) as warm,
        sync.StatefulExecutor.from_url(cluster.url, timeout_seconds=1) as cold,
    ):
        warm.set_linked_pod(NS, UID, SVC, 1)
        for server in cluster.servers:
            server.freeze()
        for executor in (warm, warm, cold):
            started = time.monotonic()
            with pytest.raises(RedisUnavailable):
                executor.get_linked_pod(NS, UID, SVC)
            assert time.monotonic() - started < 5.5
        with pytest.raises(RedisUnavailable):
            warm.nodes(anew=True)
        for server in cluster.servers:
            server.thaw()
        assert (
            until(
                lambda: warm.get_linked_pod(NS, UID, SVC), PATIENCE_SECONDS, "an answer", retry_on=(RedisUnavailable,)
            )
            == 1
        )


def test_an_error_does_not_grow_with_each_call() -> None:
    with sync.StatefulExecutor.from_url(f"redis+cluster://127.0.0.1:{free_port()}", timeout_seconds=1) as executor:
        told = []
        for _ in range(20):
            with pytest.raises(RedisUnavailable) as error:
                executor.get_linked_pod(NS, UID, SVC)
            told.append(len("".join(traceback.format_exception(error.value)).splitlines()))
    assert max(told) == min(told)


async def test_nobody_answering_is_told_with_the_time(connect: Callable[..., Awaited]) -> None:
    with ClusterSet(node_timeout_seconds=NEVER_SECONDS) as cluster:
        for server in cluster.servers:
            server.freeze()
        with pytest.raises(RedisUnavailable) as error:
            await connect(cluster.url, timeout_seconds=0.5).get_linked_pod(NS, UID, SVC)
        assert "no server of the cluster" in str(error.value)
        assert "within 0.5 seconds" in str(error.value) or "Timeout" in str(error.value)


async def test_the_url_of_one_server_names_one_of_a_cluster(
    redis_cluster: ClusterSet, connect: Callable[..., Awaited]
) -> None:
    elsewhere = next(server for server in redis_cluster.primaries() if server is not redis_cluster.primary_of(LINKS))
    with pytest.raises(ScriptError, match=r"redis\+cluster://") as error:
        await connect(f"redis://127.0.0.1:{elsewhere.port}").set_linked_pod(NS, UID, SVC, 1)
    assert "a node of a cluster" in str(error.value)


def test_a_closed_executor_asks_for_no_map(redis_cluster: ClusterSet) -> None:
    with sync.StatefulExecutor.from_url(redis_cluster.url) as executor:
        executor.get_linked_pod(NS, UID, SVC)
    with pytest.raises(RedisUnavailable, match="the executor was closed") as error:
        executor.nodes(anew=True)
    assert error.value.maybe_applied is False
