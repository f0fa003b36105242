"""The rights that the README names are those that it takes: every method works with them, and with no fewer."""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from podlink import NotReplicated, PartialFailure, ScriptError, StatefulExecutor, sync
from podlink.store import operations
from podlink.store.counting import recount
from podlink.store.counting.scan import scan_services, supports_field_expiry
from store.harness import NS, ONE_SERVER, SVC, UID, Awaited

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from sandbox.redis_cluster import ClusterSet
    from sandbox.redis_servers import RedisServer

README = (Path(__file__).parents[2] / "README.md").read_text()
(RULE,) = re.findall(r"^```acl\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
FIELD_EXPIRY, DATABASE, REPLICATED, CACHE, CLUSTER, OPERATOR = re.findall(
    r"`(\+[^`]*)`", README.split("An ACL user needs")[1].split("\n## ")[0]
)
USER, PASSWORD = "gate", "correct-horse"

one_server = pytest.mark.only_on(*ONE_SERVER, reason="the others ask the same servers for the same")
pytestmark = pytest.mark.usefixtures("leaves_orphans")


def admit(server: RedisServer, *rights: str) -> str:
    """Let the user in with these rights and no others, and return the URL to come in by."""
    words = " ".join(rights).split() + (FIELD_EXPIRY.split() if server.expires_fields else [])
    server.ask("ACL", "SETUSER", USER, "reset", "on", f">{PASSWORD}", *words)
    server.ask("ACL", "LOG", "RESET")
    return server.url_as(USER, PASSWORD)


def denied(server: RedisServer) -> set[str]:
    """What the user was not let do; redis-py tells its name where it may, and goes on where it may not."""
    log: list[Any] = server.ask("ACL", "LOG")
    entries = [entry if isinstance(entry, dict) else dict(zip(entry[::2], entry[1::2], strict=True)) for entry in log]
    return {entry["object"] for entry in entries} - {"client|setinfo"}


@pytest.fixture
def dismissed(server: RedisServer) -> Iterator[None]:
    yield
    server.ask("ACL", "DELUSER", USER)


async def every_method(executor: Awaited) -> None:
    """Call each at least once, with a load that is unknown to the server's scripts, and to its expiry."""
    link, pods = (NS, UID, SVC), {f"u{number}": 0 for number in range(60)}
    await executor.set_service_state(NS, SVC, 0, "Ready", version=1)
    await executor.set_service_state(NS, "gone", 0, "", version=1)
    await executor.set_workload_state(NS, SVC, "Available", version=1)
    await executor.set_workload_state(NS, "gone", "", version=1)
    assert await executor.get_service_state(NS, SVC) == {0: "Ready"}
    assert await executor.get_workload_state(NS, SVC) == "Available"
    assert await executor.get_workload_states(NS, [SVC]) == {SVC: "Available"}
    assert await executor.compute_linked_pod_if_absent(*link, persist_seconds=60) == 0
    assert await executor.set_linked_pod(*link, 0) == 0
    assert await executor.try_set_linked_pod(*link, 1, expected=0) == (True, 1)
    assert await executor.set_linked_pod_if_absent(*link, 0) == 1
    assert await executor.get_linked_pod(*link) == await executor.get_linked_pod_if_persist(*link) == 1
    assert await executor.get_linked_services(NS, UID) == {SVC: 1}
    assert await executor.remove_linked_pod_with_id(*link, 1, persist_seconds=60) is True
    assert await executor.remove_linked_pod(*link) is True
    await executor.set_linked_pods(NS, pods, SVC, persist_seconds=60)
    await executor.try_set_linked_pods(NS, pods, SVC)
    await executor.set_linked_pods_if_absent(NS, pods, SVC)
    await executor.compute_linked_pods_if_absent(NS, pods, SVC)
    assert await executor.get_linked_pods(NS, pods, SVC) == {0: [*pods]}
    assert (await executor.get_service(NS, SVC)).loads == {0: len(pods)}
    assert all((await executor.remove_linked_pods_with_id(NS, pods, SVC)).values())
    await executor.remove_linked_pods(NS, pods, SVC)
    # In a pipeline scripts travel as text.
    assert await executor.run_many([operations.set_linked_pod(NS, f"u{n}", SVC, 0) for n in range(3)]) == [None] * 3


@one_server
@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_every_method_works(server: RedisServer, raw: redis.Redis, dismissed: None, kind: str) -> None:
    url = admit(server, RULE)
    if kind == "async":
        async with StatefulExecutor.from_url(url) as asynchronous:
            await every_method(Awaited(asynchronous))
            await asyncio.gather(*(asynchronous.set_linked_pod(NS, f"u{n}", SVC, 0) for n in range(100)))
    else:
        with sync.StatefulExecutor.from_url(url) as blocking:
            await every_method(Awaited(blocking))
    assert denied(server) == set()


@one_server
async def test_no_right_is_too_many(server: RedisServer, raw: redis.Redis, dismissed: None) -> None:
    for right in RULE.split()[1:]:  # behind the pattern of the keys
        raw.flushall()
        raw.script_flush()
        url = admit(server, RULE, right.replace("+", "-"))
        async with StatefulExecutor.from_url(url) as executor:
            with contextlib.suppress(ScriptError, PartialFailure, AssertionError):
                await every_method(Awaited(executor))
                raw.script_flush()
                await executor.set_linked_pod(NS, UID, SVC, 0)
            assert denied(server) == {right.removeprefix("+")}


@one_server
async def test_a_cache_a_database_durability_and_the_operator_need_more(
    server: RedisServer, raw: redis.Redis, dismissed: None
) -> None:
    async with StatefulExecutor.from_url(admit(server, RULE, CACHE), cache=True) as executor:
        for _ in range(2):
            assert await executor.get_linked_pod(NS, UID, SVC) is None
    assert denied(server) == set()
    async with StatefulExecutor.from_url(admit(server, RULE, DATABASE).replace("/0", "/1")) as executor:
        assert await executor.get_linked_pod(NS, UID, SVC) is None
    assert denied(server) == set()
    url = admit(server, RULE, REPLICATED)
    async with StatefulExecutor.from_url(url, timeout_seconds=4, durability="replicated") as executor:
        with pytest.raises(NotReplicated):
            await executor.set_linked_pod(NS, UID, SVC, 1)
    assert denied(server) == set()
    raw.hset("sf:{games:state:lobby}load", "0", "7")
    raw.zadd("sf:{games:state:lobby}exp", {"0 sf:{games:lk:nobody}lobby": 4_000_000_000_000})
    async with StatefulExecutor.from_url(admit(server, RULE, OPERATOR)) as executor:
        for look in (operations.ping(), operations.run_id(), operations.set_marker("epoch", "1")):
            await executor.run(look)
        assert await executor.run(operations.get_marker("epoch")) == "1"
        await supports_field_expiry(executor)
        assert [found async for slice_ in scan_services(executor, None, prune=True) for found in slice_]
        done = await recount(executor, pause_seconds=0.01)
        assert (bool(done.loads), done.members, done.reason) == (True, 1, None)
    assert denied(server) == set()


@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_a_cluster_needs_more(redis_cluster: ClusterSet, kind: str) -> None:
    for server in redis_cluster.servers:
        admit(server, RULE, CLUSTER)
    try:
        url = redis_cluster.url.replace("//", f"//{USER}:{PASSWORD}@")
        slot = redis_cluster.servers[0].ask("CLUSTER", "KEYSLOT", f"sf:{{{NS}:lk:moving}}")
        target = next(each for each in redis_cluster.primaries() if each is not redis_cluster.primary_of_slot(slot))
        if kind == "async":
            async with StatefulExecutor.from_url(url) as asynchronous:
                await every_method(Awaited(asynchronous))
                redis_cluster.open_slot(slot, target)
                assert await asynchronous.get_linked_pod(NS, "moving", SVC) is None
        else:
            with sync.StatefulExecutor.from_url(url) as blocking:
                await every_method(Awaited(blocking))
                redis_cluster.open_slot(slot, target)
                assert blocking.get_linked_pod(NS, "moving", SVC) is None
        redis_cluster.close_slot(slot, target)
        assert set().union(*map(denied, redis_cluster.servers)) == set()
    finally:
        for server in redis_cluster.servers:
            server.ask("ACL", "DELUSER", USER)
