"""Behind Sentinels: callers see the outage of a failover, as RedisUnavailable, and nothing else of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from podlink import NotReplicated, RedisUnavailable
from podlink.store.operations import scripts
from sandbox.processes import free_port, until_async
from sandbox.redis_sentinel import SERVICE, SentinelSet
from sandbox.redis_servers import UNREACHABLE, RedisServer
from store.harness import LINK, NS, PATIENCE_SECONDS, SVC, UID, Awaited, goes_on

if TYPE_CHECKING:
    from collections.abc import Callable


async def everywhere(sentinels: SentinelSet, pod: str) -> None:
    """Wait until both replicas have the link."""
    await until_async(
        lambda: [replica.ask("GET", LINK) for replica in sentinels.replicas()] == [pod, pod],
        PATIENCE_SECONDS,
        f"both replicas to have the link to pod {pod}",
    )


@pytest.mark.parametrize("lose", [RedisServer.kill, RedisServer.freeze], ids=["kill", "freeze"])
async def test_calls_follow_a_failover(
    sentinels: SentinelSet, connect: Callable[..., Awaited], lose: Callable[[RedisServer], None]
) -> None:
    executor = connect(sentinels.url, timeout_seconds=5)
    await executor.set_linked_pod(NS, UID, SVC, 1)
    await everywhere(sentinels, "1")
    lost = sentinels.primary()
    lose(lost)
    promoted = await asyncio.to_thread(sentinels.await_failover, lost)
    assert await goes_on(lambda: executor.get_linked_pod(NS, UID, SVC)) == 1
    # The promoted server knows no scripts, and the caller does not notice.
    assert promoted.ask("SCRIPT", "EXISTS", scripts.SET_LINK.sha1) == [0]
    assert await executor.set_linked_pod(NS, UID, SVC, 2) == 1
    assert promoted.ask("GET", LINK) == "2"
    await asyncio.to_thread(sentinels.heal)
    assert await executor.set_linked_pod(NS, UID, SVC, 3) == 2
    assert promoted.ask("GET", LINK) == "3"


async def test_a_demoted_primary_is_left(sentinels: SentinelSet, connect: Callable[..., Awaited]) -> None:
    executor = connect(sentinels.url)
    await executor.set_linked_pod(NS, UID, SVC, 1)
    demoted = sentinels.primary()
    # A failover by command: the old primary stays up, and is told that it is a replica.
    assert sentinels.sentinels[0].ask("SENTINEL", "FAILOVER", SERVICE) in {"OK", True}
    promoted = await asyncio.to_thread(sentinels.await_failover, demoted)
    # The Sentinel that demotes it closes its clients' connections too, at times in the middle of this question.
    await until_async(
        lambda: demoted.ask("ROLE")[0] == "slave",
        PATIENCE_SECONDS,
        "the old primary to be demoted",
        retry_on=UNREACHABLE,
    )
    assert await goes_on(lambda: executor.set_linked_pod(NS, UID, SVC, 2)) == 1
    assert promoted.ask("GET", LINK) == "2"
    with demoted.client() as client:
        ours = str(client.client_id())

        def left() -> bool:
            # One without a name may be a Sentinel that has just connected.
            names = [each["name"] for each in client.client_list(_type="normal") if each["id"] != ours]
            return all(name.startswith("sentinel-") for name in names)

        await until_async(left, PATIENCE_SECONDS, "the old primary to be left")


async def test_one_sentinel_that_answers_is_enough(sentinels: SentinelSet, connect: Callable[..., Awaited]) -> None:
    dead, frozen, _ = sentinels.sentinels
    dead.kill()
    frozen.freeze()
    assert await connect(sentinels.url).set_linked_pod(NS, UID, SVC, 1) is None


async def test_no_sentinel_answers(connect: Callable[..., Awaited]) -> None:
    ports = free_port(), free_port()
    executor = connect(f"redis+sentinel://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}/{SERVICE}", timeout_seconds=2)
    with pytest.raises(RedisUnavailable) as error:
        await executor.set_linked_pod(NS, UID, SVC, 1)
    assert error.value.maybe_applied is False
    for port in ports:
        assert f"127.0.0.1:{port}: Error 111" in str(error.value)
    assert len(str(error.value)) < 500


async def test_the_database_may_stand_in_the_query(sentinels: SentinelSet, connect: Callable[..., Awaited]) -> None:
    for url in (sentinels.url.replace("/0", "?db=3"), sentinels.url.replace("/0", "/3?db=3")):
        assert await connect(url).set_linked_pod_if_absent(NS, UID, SVC, 1) == 1
        assert sentinels.primary().ask("INFO", "keyspace").keys() == {"db3"}
    executor = connect(sentinels.url.replace("/0", ""), db=3)
    assert await executor.get_linked_pod(NS, UID, SVC) == 1


async def test_a_service_the_sentinels_do_not_know_is_named(
    sentinels: SentinelSet, connect: Callable[..., Awaited]
) -> None:
    executor = connect(sentinels.url.replace(f"/{SERVICE}/", "/lounge/"), timeout_seconds=2)
    with pytest.raises(RedisUnavailable, match="lounge") as error:
        await executor.set_linked_pod(NS, UID, SVC, 1)
    assert error.value.maybe_applied is False


async def test_servers_and_sentinels_have_passwords_of_their_own(connect: Callable[..., Awaited]) -> None:
    with SentinelSet(password="correct horse:@/", sentinel_password="battery staple:@/") as secured:
        assert await connect(secured.url).set_linked_pod(NS, UID, SVC, 1) is None
        assert secured.primary().ask("GET", LINK) == "1"
        with pytest.raises(RedisUnavailable, match="Check the credentials") as error:
            await connect(secured.url.replace("battery", "cart")).set_linked_pod(NS, UID, SVC, 1)
        for sentinel in secured.sentinels:
            assert f"127.0.0.1:{sentinel.port}: " in str(error.value)
        assert len(str(error.value)) < 500


async def test_a_write_is_confirmed_when_a_replica_has_it(
    sentinels: SentinelSet, connect: Callable[..., Awaited]
) -> None:
    executor = connect(sentinels.url, timeout_seconds=8, durability="replicated")
    await executor.set_linked_pod(NS, UID, SVC, 1)
    first, second = sentinels.replicas()
    assert "1" in {first.ask("GET", LINK), second.ask("GET", LINK)}
    first.freeze()
    assert await executor.set_linked_pod(NS, UID, SVC, 2) == 1
    second.freeze()
    with pytest.raises(NotReplicated) as error:
        await executor.set_linked_pod(NS, UID, SVC, 3)
    assert error.value.maybe_applied is True
    assert await executor.get_linked_pod(NS, UID, SVC) == 3  # a read needs no replica
    await asyncio.to_thread(sentinels.heal)
    assert await goes_on(lambda: executor.set_linked_pod(NS, UID, SVC, 4)) in {3, 4}
    assert "4" in {first.ask("GET", LINK), second.ask("GET", LINK)}


async def test_a_server_without_replicas_confirms_no_write(
    own_server: Callable[..., RedisServer], connect: Callable[..., Awaited]
) -> None:
    executor = connect(own_server().url, timeout_seconds=4, durability="replicated")
    with pytest.raises(NotReplicated) as error:
        await executor.set_linked_pod(NS, UID, SVC, 1)
    assert error.value.maybe_applied is True
    assert await executor.get_linked_pod(NS, UID, SVC) == 1
