"""What real servers tell about their setup, and what PodLink makes of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from podlink import StatefulExecutor
from podlink.controller.monitor import RedisMonitor
from podlink.controller.redis_advice import RedisAdvisor, redis_advice
from podlink.metrics import Metrics
from sandbox.processes import until_async
from sandbox.redis_sentinel import SERVICE
from store.harness import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.redis_cluster import ClusterSet
    from sandbox.redis_sentinel import SentinelSet
    from sandbox.redis_servers import RedisServer

EVICTS = (
    "maxmemory-policy is allkeys-lru, so it deletes links and states when its memory is full;"
    " set maxmemory-policy to noeviction"
)
KEEPS_NOTHING = (
    "it keeps nothing on disk (neither appendonly nor save is set), so a restart loses all links;"
    " set appendonly to yes, or set save points (save)"
)


async def advice(url: str) -> list[str]:
    async with StatefulExecutor.from_url(url) as executor:
        return await redis_advice(executor)


async def test_eviction_and_no_persistence_are_told_until_they_are_mended(
    own_server: Callable[..., RedisServer],
) -> None:
    server = own_server(settings={"maxmemory-policy": "allkeys-lru"})
    assert await advice(server.url) == [f"Redis: {EVICTS}", f"Redis: {KEEPS_NOTHING}"]

    server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    server.ask("CONFIG", "SET", "save", "3600 1")
    assert await advice(server.url) == []


@pytest.mark.parametrize(("rules", "told"), [("-config", [f"Redis: {EVICTS}"]), ("-config -info", [])])
async def test_a_user_that_may_not_ask_is_told_what_it_may_know(
    own_server: Callable[..., RedisServer], rules: str, told: list[str]
) -> None:
    users = {"gate": f"on >secret ~* &* +@all {rules}"}
    server = own_server(settings={"maxmemory-policy": "allkeys-lru"}, users=users)
    assert await advice(server.url.replace("://", "://gate:secret@")) == told


async def test_each_primary_of_a_cluster_is_asked(redis_cluster: ClusterSet) -> None:
    one, *_ = primaries = redis_cluster.primaries()
    one.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        told = await advice(redis_cluster.url)
    finally:
        one.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert f"Redis 127.0.0.1:{one.port}: {EVICTS}" in told
    (persistence,) = [each for each in told if each.endswith(KEEPS_NOTHING)]
    assert all(f"127.0.0.1:{each.port}" in persistence for each in primaries)
    assert len(told) == 2


async def test_the_primary_after_a_failover_is_asked_at_once(sentinels: SentinelSet) -> None:
    replicas = sentinels.replicas()
    for replica in replicas:
        replica.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        async with StatefulExecutor.from_url(sentinels.url) as executor:
            advisors: list[RedisAdvisor] = []
            monitor = RedisMonitor(
                executor, Metrics(), name="redis", on_doubt=lambda _: [each.look_again() for each in advisors]
            )
            advisor = RedisAdvisor(executor, monitor)
            advisors.append(advisor)
            running = [asyncio.create_task(each.run()) for each in (monitor, advisor)]
            await until_async(
                lambda: advisor.warnings == [f"Redis: {KEEPS_NOTHING}"], PATIENCE_SECONDS, "the first look"
            )
            sentinels.sentinels[0].ask("SENTINEL", "FAILOVER", SERVICE)
            # The next look without a failover would be a minute later.
            await until_async(lambda: f"Redis: {EVICTS}" in advisor.warnings, 40, "the look at the new primary")
            for task in running:
                task.cancel()
            await asyncio.wait(running)
    finally:
        for replica in replicas:
            replica.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
