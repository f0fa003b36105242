"""Walking the keyspace: every service Redis knows, and the fields that outlived their string."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from podlink import InvalidArgument, RedisUnavailable, StatefulExecutor
from podlink.domain import keys
from podlink.store import operations
from podlink.store.counting.scan import scan_services, supports_field_expiry, walk
from sandbox.processes import free_port, until
from store.harness import LINKS, NS, ONE_PRIMARY, SVC, UID, Awaited, Topology, fill

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from sandbox.redis_cluster import ClusterSet
    from sandbox.redis_servers import RedisServer


async def services(executor: StatefulExecutor, namespace: str | None = None, *, prune: bool = False) -> set[object]:
    return {found async for slice_ in scan_services(executor, namespace, prune=prune) for found in slice_}


@pytest.mark.usefixtures("leaves_orphans")
async def test_every_service_with_any_key_is_found(aexecutor: StatefulExecutor, raw: redis.Redis) -> None:
    await aexecutor.set_service_state(NS, "a", 0, "Ready")
    await aexecutor.set_workload_state(NS, "b", "Available")
    await aexecutor.set_service_state(NS, "c", 0, "", version="7")
    await aexecutor.set_workload_state("other", "d", "", version="7")
    raw.hset("sf:{other:state:e}load", "0", "1")
    raw.zadd("sf:{other:state:f}exp", {"0 x": 1})
    raw.set("unrelated", "1")
    raw.set("sf:{games:lk:u:state:x}y", "1")
    raw.set("sf:{games:stately:x}", "1")
    raw.set("sf:{games:state:x}unknown", "1")
    raw.set(b"sf:{games:state:\xff}", "1")
    raw.set("sf:{games:state:\x01}", "1")
    for prune in (False, True):
        found = await services(aexecutor, prune=prune)
        assert found == {(NS, "a"), (NS, "b"), (NS, "c"), ("other", "d"), ("other", "e"), ("other", "f")}
    assert await services(aexecutor, "other") == {("other", "d"), ("other", "e"), ("other", "f")}
    assert await services(aexecutor, "nobody") == set()


async def test_namespace_is_taken_literally(aexecutor: StatefulExecutor) -> None:
    for namespace in ("a*b", "a[1]b", "a?b", "a\\b", "aXb", "a1b"):
        await aexecutor.set_workload_state(namespace, SVC, "Available")
    for namespace in ("a*b", "a[1]b", "a?b", "a\\b"):
        assert await services(aexecutor, namespace) == {(namespace, SVC)}


async def test_more_than_one_slice(aexecutor: StatefulExecutor, raw: redis.Redis) -> None:
    fill(raw, {f"sf:{{games:workload:s{number}}}": "Available" for number in range(2500)})
    slices = [slice_ async for slice_ in scan_services(aexecutor, NS)]
    assert len(slices) > 1
    assert set().union(*slices) == {(NS, f"s{number}") for number in range(2500)}


@pytest.mark.only_on(*ONE_PRIMARY, reason="each server of a Cluster counts its own calls")
async def test_keys_of_links_are_not_sent_when_only_services_are_asked_for(
    aexecutor: StatefulExecutor, raw: redis.Redis
) -> None:
    fill(raw, {f"sf:{{games:lk:u{number}}}lobby-{'x' * 100}": "1" for number in range(2000)})
    await aexecutor.set_workload_state(NS, SVC, "Available")
    raw.config_resetstat()
    assert await services(aexecutor) == {(NS, SVC)}
    assert raw.info("stats")["total_net_output_bytes"] < 10_000


async def test_fields_without_string_are_pruned(aexecutor: StatefulExecutor, raw: redis.Redis) -> None:
    for number in range(1200):
        raw.hset(f"sf:{{games:lk:u{number}}}", mapping={"gone": "1"})
    await aexecutor.set_linked_pod(NS, UID, SVC, 1)
    raw.hset(LINKS, "gone", "2")
    raw.hset("sf:{other:lk:u}", "gone", "1")
    await services(aexecutor, NS, prune=True)
    assert raw.hgetall(LINKS) == {SVC: "1"}
    assert set(raw.scan_iter("sf:{*:lk:*}")) == {LINKS, "sf:{other:lk:u}"}
    await services(aexecutor, prune=True)
    assert raw.exists("sf:{other:lk:u}") == 0


async def test_key_of_the_wrong_type_does_not_stop_pruning(
    aexecutor: StatefulExecutor, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    raw.set("sf:{games:lk:broken}", "no hash")
    raw.hset("sf:{games:lk:u}", "gone", "1")
    with caplog.at_level(logging.WARNING, "podlink.scan"):
        await services(aexecutor, prune=True)
    assert raw.exists("sf:{games:lk:u}") == 0
    (record,) = caplog.records
    assert "broken" in record.getMessage()
    assert record.__dict__["uid"] == "broken"
    raw.flushall()


@pytest.mark.parametrize("prune", [False, True])
async def test_server_lost_on_the_way_ends_the_walk(own_server: Callable[..., RedisServer], prune: bool) -> None:
    server = own_server()
    async with StatefulExecutor.from_url(server.url) as executor:
        with server.client() as raw:
            fill(raw, {f"sf:{{games:workload:s{number}}}": "Available" for number in range(2500)})
            raw.hset("sf:{games:lk:u}", "gone", "1")
        walk = scan_services(executor, prune=prune)
        await anext(walk)
        server.kill()
        with pytest.raises(RedisUnavailable):
            await anext(walk)


async def test_every_server_of_a_cluster_is_walked_also_one_that_took_over(redis_cluster: ClusterSet) -> None:
    uids = {f"u{number}" for number in range(60)}
    lost, *_ = redis_cluster.primaries()
    assert len({redis_cluster.primary_of(keys.link_hash_key(NS, uid)).port for uid in uids}) == 3
    async with StatefulExecutor.from_url(redis_cluster.url) as executor:

        async def found() -> set[str]:
            slices = [slice_ async for slice_ in walk(executor, NS, ":lk:*}")]
            return {uid.uid for slice_ in slices for key in slice_ if (uid := keys.uid_of_key(key))}

        await executor.set_linked_pods(NS, dict.fromkeys(uids, 1), SVC)
        assert await found() == uids

        hand_over(redis_cluster, lost)
        lost.kill()
        assert await found() == uids
    redis_cluster.heal()


def hand_over(cluster: ClusterSet, primary: RedisServer) -> None:
    """Hand the slots of a primary over to its replica, in order."""
    ports = {server.port: server for server in cluster.servers}
    (_, _, ((_, port, _),)) = primary.ask("ROLE")
    ports[int(port)].ask("CLUSTER", "FAILOVER")
    until(lambda: primary not in cluster.primaries(), 60, "the replica to take over")
    cluster.await_failover(primary)


async def test_a_server_that_is_gone_is_not_mistaken_for_another(
    redis_cluster: ClusterSet, connect: Callable[..., Awaited]
) -> None:
    executor = connect(redis_cluster.url)
    assert len(await executor.nodes()) == 3
    with pytest.raises(RedisUnavailable):
        await executor.run(operations.scan(0, "*", 10, node=f"127.0.0.1:{free_port()}"))


async def test_field_expiry_is_asked_of_the_server(aexecutor: StatefulExecutor, server: Topology) -> None:
    assert await supports_field_expiry(aexecutor) is server.expires_fields


async def test_invalid_namespace(aexecutor: StatefulExecutor) -> None:
    with pytest.raises(InvalidArgument, match="namespace"):
        await services(aexecutor, "a:b")
