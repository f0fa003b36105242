"""Writes that a replica must have before the caller goes on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from podlink import NotReplicated, PartialFailure, StatefulExecutor, sync
from sandbox.processes import until
from store.harness import LINK, NS, SVC, UID, Awaited

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sandbox.redis_servers import RedisServer


@pytest.fixture
def pair(own_server: Callable[..., RedisServer]) -> tuple[RedisServer, RedisServer]:
    """A primary and its replica, in sync."""
    primary, replica = own_server(), own_server()
    with primary.client() as raw:
        raw.config_set("repl-diskless-sync-delay", 0)
    with replica.client() as raw:
        raw.replicaof("127.0.0.1", primary.port)
        until(lambda: raw.info("replication")["master_link_status"] == "up", 20, "the replica to be in sync")
    return primary, replica


@pytest.fixture(params=["async", "blocking"])
async def replicated(request: pytest.FixtureRequest, pair: tuple[RedisServer, RedisServer]) -> AsyncIterator[Awaited]:
    settings: dict[str, Any] = {"durability": "replicated", "timeout_seconds": 2}
    if request.param == "async":
        async with StatefulExecutor.from_url(pair[0].url, **settings) as asynchronous:
            yield Awaited(asynchronous)
    else:
        with sync.StatefulExecutor.from_url(pair[0].url, **settings) as blocking:
            yield Awaited(blocking)


async def test_what_was_confirmed_is_on_the_replica(replicated: Awaited, pair: tuple[RedisServer, RedisServer]) -> None:
    with pair[1].client() as replica:
        assert await replicated.set_linked_pod(NS, UID, SVC, 1) is None
        assert replica.get(LINK) == "1"
        assert await replicated.set_linked_pods(NS, {f"u{n}": n for n in range(100)}, SVC) == {
            f"u{n}": None for n in range(100)
        }
        assert replica.get(f"sf:{{{NS}:lk:u99}}{SVC}") == "99"
        assert await replicated.remove_linked_pod(NS, UID, SVC) is True
        assert replica.get(LINK) is None


async def test_what_no_replica_confirms_is_told(replicated: Awaited, pair: tuple[RedisServer, RedisServer]) -> None:
    primary, replica = pair
    await replicated.set_linked_pod(NS, UID, SVC, 1)
    replica.freeze()
    with pytest.raises(NotReplicated, match="no replica confirmed it in time") as error:
        await replicated.set_linked_pod(NS, UID, SVC, 2)
    assert error.value.maybe_applied is True
    with primary.client() as raw:
        assert raw.get(LINK) == "2"
    # Reads need no replica.
    assert await replicated.get_linked_pod(NS, UID, SVC) == 2
    with pytest.raises(NotReplicated):
        await replicated.set_linked_pods(NS, {"u1": 1, "u2": 2}, SVC)
    replica.thaw()
    assert await replicated.set_linked_pod(NS, UID, SVC, 3) == 2


async def test_calls_that_failed_anyway_keep_their_own_error(
    replicated: Awaited, pair: tuple[RedisServer, RedisServer]
) -> None:
    with pair[0].client() as raw:
        raw.rpush(LINK, "no string")
    with pytest.raises(PartialFailure) as error:
        await replicated.set_linked_pods(NS, {UID: 1, "u1": 1}, SVC)
    assert list(error.value.errors) == [UID]
    assert error.value.results == {"u1": None}


async def test_tasks_share_one_confirmation(pair: tuple[RedisServer, RedisServer]) -> None:
    primary, _ = pair
    async with StatefulExecutor.from_url(primary.url, durability="replicated") as executor:
        await asyncio.gather(*(executor.set_linked_pod(NS, f"u{n}", SVC, n) for n in range(200)))
        with primary.client() as raw:
            raw.config_resetstat()
            told = await asyncio.gather(*(executor.set_linked_pod(NS, f"u{n}", SVC, n) for n in range(200)))
            assert told == list(range(200))
            assert raw.info("commandstats")["cmdstat_wait"]["calls"] <= 10
