"""Links: what each operation on one does, as the uid, another client and Redis itself see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from podlink.store import operations
from sandbox.processes import until_async
from store.harness import LINK, LINKS, NS, ONE_PRIMARY, SVC, UID, WAYS_TO_LINK, Awaited, Topology, Wire

if TYPE_CHECKING:
    import redis


def assert_lives(milliseconds: int, seconds: int) -> None:
    assert (seconds - 5) * 1000 < milliseconds <= seconds * 1000


@pytest.mark.parametrize("way", WAYS_TO_LINK)
async def test_permanent_link_is_a_string_and_a_field_without_time_to_live(
    executor: Awaited, wire: Wire, way: str
) -> None:
    await WAYS_TO_LINK[way](executor, 0, -1)
    assert wire.redis.get(LINK) == "0"
    assert wire.redis.hgetall(LINKS) == {SVC: "0"}
    assert (wire.milliseconds(LINK), wire.milliseconds(LINKS)) == (-1, -1)
    assert await executor.get_linked_pod(NS, UID, SVC) == 0
    assert await executor.get_linked_pod_if_persist(NS, UID, SVC) == 0
    assert await executor.get_linked_services(NS, UID) == {SVC: 0}
    assert await executor.run(operations.link_ttl(NS, UID, SVC)) == -1
    assert await executor.run(operations.listed_pod(NS, UID, SVC)) == 0


async def test_no_link_is_none_everywhere(executor: Awaited) -> None:
    assert await executor.get_linked_pod(NS, UID, SVC) is None
    assert await executor.get_linked_pod_if_persist(NS, UID, SVC) is None
    assert await executor.get_linked_services(NS, UID) == {}
    assert await executor.get_linked_pods(NS, [UID], SVC) == {}
    assert await executor.run(operations.link_ttl(NS, UID, SVC)) is None
    assert await executor.run(operations.listed_pod(NS, UID, SVC)) is None


async def test_set_returns_the_previous_pod(executor: Awaited) -> None:
    assert await executor.set_linked_pod(NS, UID, SVC, 0) is None
    assert await executor.set_linked_pod(NS, UID, SVC, 7, persist_seconds=60) == 0
    assert await executor.set_linked_pod(NS, UID, SVC, 0) == 7
    assert await executor.get_linked_pod(NS, UID, SVC) == 0


@pytest.mark.parametrize("way", WAYS_TO_LINK)
async def test_temporary_link_gives_string_and_field_the_same_end(
    executor: Awaited, wire: Wire, server: Topology, way: str
) -> None:
    await WAYS_TO_LINK[way](executor, 3, 60)
    assert_lives(wire.milliseconds(LINK), 60)
    assert_lives(await executor.run(operations.link_ttl(NS, UID, SVC)), 60)
    if server.expires_fields:
        ends = wire.redis.execute_command("PEXPIRETIME", LINK)
        assert wire.redis.execute_command("HPEXPIRETIME", LINKS, "FIELDS", 1, SVC) == [ends]
    assert await executor.get_linked_pod(NS, UID, SVC) == 3
    assert await executor.get_linked_pod_if_persist(NS, UID, SVC) is None
    assert await executor.get_linked_services(NS, UID) == {SVC: 3}


async def test_longest_time_to_live(executor: Awaited, wire: Wire) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 2**31 - 1, persist_seconds=2**31 - 1)
    assert_lives(wire.milliseconds(LINK), 2**31 - 1)
    assert await executor.get_linked_services(NS, UID) == {SVC: 2**31 - 1}


async def test_setting_again_replaces_the_time_to_live(executor: Awaited, wire: Wire, server: Topology) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 3, persist_seconds=60)
    await executor.set_linked_pod(NS, UID, SVC, 3)
    assert wire.milliseconds(LINK) == -1
    if server.expires_fields:
        assert wire.field_milliseconds(LINKS, SVC) == -1
    await executor.set_linked_pod(NS, UID, SVC, 3, persist_seconds=90)
    assert_lives(wire.milliseconds(LINK), 90)


async def test_expired_link_is_gone_with_its_field(executor: Awaited, raw: redis.Redis, server: Topology) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 3, persist_seconds=1)
    await executor.set_linked_pod(NS, UID, "arena", 4)

    async def gone() -> bool:
        return await executor.get_linked_pod(NS, UID, SVC) is None

    await until_async(gone, 5, "the link to expire")
    if server.expires_fields:
        await until_async(lambda: raw.hkeys(LINKS) == ["arena"], 5, "the field to expire by itself")
    else:
        assert sorted(raw.hkeys(LINKS)) == ["arena", SVC]
    assert await executor.get_linked_services(NS, UID) == {"arena": 4}
    assert raw.hkeys(LINKS) == ["arena"]


async def test_try_set_gives_way_to_a_permanent_link_to_another_pod(executor: Awaited, raw: redis.Redis) -> None:
    assert await executor.try_set_linked_pod(NS, UID, SVC, 0) == (True, 0)
    assert await executor.try_set_linked_pod(NS, UID, SVC, 1, persist_seconds=60) == (False, 0)
    assert raw.hgetall(LINKS) == {SVC: "0"}
    assert await executor.get_linked_pod_if_persist(NS, UID, SVC) == 0


async def test_try_set_of_the_same_pod_is_set_and_takes_the_new_time_to_live(executor: Awaited, wire: Wire) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 5)
    assert await executor.try_set_linked_pod(NS, UID, SVC, 5, persist_seconds=60) == (True, 5)
    assert_lives(wire.milliseconds(LINK), 60)


async def test_try_set_replaces_a_temporary_link(executor: Awaited) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 0, persist_seconds=60)
    assert await executor.try_set_linked_pod(NS, UID, SVC, 1) == (True, 1)
    assert await executor.get_linked_services(NS, UID) == {SVC: 1}


async def test_try_set_replaces_the_expected_permanent_link_only(executor: Awaited) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 0)
    assert await executor.try_set_linked_pod(NS, UID, SVC, 2, expected=1) == (False, 0)
    assert await executor.try_set_linked_pod(NS, UID, SVC, 2, expected=0) == (True, 2)
    assert await executor.get_linked_pod(NS, UID, SVC) == 2


async def test_set_if_absent_leaves_what_is_there(executor: Awaited, wire: Wire) -> None:
    assert await executor.set_linked_pod_if_absent(NS, UID, SVC, 0, persist_seconds=60) == 0
    assert await executor.set_linked_pod_if_absent(NS, UID, SVC, 1) == 0
    assert_lives(wire.milliseconds(LINK), 60)
    assert wire.redis.hgetall(LINKS) == {SVC: "0"}


async def test_removed_link_is_gone(executor: Awaited, raw: redis.Redis) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 0)
    assert await executor.remove_linked_pod(NS, UID, SVC) is True
    assert raw.keys() == []
    assert await executor.remove_linked_pod(NS, UID, SVC) is False


async def test_removal_leaves_the_uids_other_links(executor: Awaited) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 0)
    await executor.set_linked_pod(NS, UID, "arena", 1)
    await executor.remove_linked_pod(NS, UID, SVC)
    assert await executor.get_linked_services(NS, UID) == {"arena": 1}


@pytest.mark.parametrize("before", [-1, 5, 600])
async def test_reconnect_window(executor: Awaited, wire: Wire, before: int) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 4, persist_seconds=before)
    assert await executor.remove_linked_pod(NS, UID, SVC, persist_seconds=60) is True
    assert_lives(wire.milliseconds(LINK), 60)
    assert wire.redis.exists(LINKS) == 0
    assert await executor.get_linked_pod(NS, UID, SVC) == 4
    assert await executor.get_linked_pod_if_persist(NS, UID, SVC) is None
    assert await executor.get_linked_services(NS, UID) == {}
    assert await executor.get_linked_pods(NS, [UID], SVC) == {4: [UID]}


async def test_reconnect_window_ends(executor: Awaited, raw: redis.Redis) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 4)
    await executor.remove_linked_pod(NS, UID, SVC, persist_seconds=1)
    await until_async(lambda: not raw.keys(), 5, "nothing to be left of the link")
    assert await executor.get_linked_pod(NS, UID, SVC) is None


async def test_link_in_its_reconnect_window_is_kept_by_the_if_absent_operations(executor: Awaited, wire: Wire) -> None:
    await executor.set_service_state(NS, SVC, 9, "Ready")
    await executor.set_linked_pod(NS, UID, SVC, 4)
    await executor.remove_linked_pod(NS, UID, SVC, persist_seconds=60)
    assert await executor.set_linked_pod_if_absent(NS, UID, SVC, 8) == 4
    assert await executor.compute_linked_pod_if_absent(NS, UID, SVC) == 4
    assert_lives(wire.milliseconds(LINK), 60)
    assert await executor.get_linked_services(NS, UID) == {}


async def test_uid_that_comes_back_within_its_window_is_linked_again(executor: Awaited, wire: Wire) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 4)
    await executor.remove_linked_pod(NS, UID, SVC, persist_seconds=60)
    assert await executor.set_linked_pod(NS, UID, SVC, 4) == 4
    assert wire.milliseconds(LINK) == -1
    assert await executor.get_linked_services(NS, UID) == {SVC: 4}


async def test_removal_within_the_window_ends_it(executor: Awaited, raw: redis.Redis) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 4)
    await executor.remove_linked_pod(NS, UID, SVC, persist_seconds=60)
    assert await executor.remove_linked_pod(NS, UID, SVC) is True
    assert raw.keys() == []


async def test_compare_and_delete_removes_only_the_link_it_knows(executor: Awaited, raw: redis.Redis) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 0)
    assert await executor.remove_linked_pod_with_id(NS, UID, SVC, 1) is False
    assert await executor.get_linked_services(NS, UID) == {SVC: 0}
    assert await executor.remove_linked_pod_with_id(NS, UID, SVC, 0) is True
    assert raw.keys() == []
    assert await executor.remove_linked_pod_with_id(NS, UID, SVC, 0) is False


async def test_compare_and_delete_with_a_reconnect_window(executor: Awaited, wire: Wire) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 3, persist_seconds=600)
    assert await executor.remove_linked_pod_with_id(NS, UID, SVC, 2, persist_seconds=60) is False
    assert_lives(wire.milliseconds(LINK), 600)
    assert await executor.remove_linked_pod_with_id(NS, UID, SVC, 3, persist_seconds=60) is True
    assert_lives(wire.milliseconds(LINK), 60)
    assert wire.redis.exists(LINKS) == 0


@pytest.mark.parametrize("by_id", [False, True])
async def test_removal_without_string_takes_the_field_along(executor: Awaited, raw: redis.Redis, by_id: bool) -> None:
    raw.hset(LINKS, SVC, "5")
    if by_id:
        assert await executor.remove_linked_pod_with_id(NS, UID, SVC, 5) is False
    else:
        assert await executor.remove_linked_pod(NS, UID, SVC) is False
    assert raw.keys() == []


@pytest.mark.only_on(*ONE_PRIMARY, reason="each server of a Cluster counts its own calls")
async def test_linked_pods_groups_uids_in_one_round_trip(executor: Awaited, raw: redis.Redis) -> None:
    for number in range(6):
        await executor.set_linked_pod(NS, f"u{number}", SVC, number % 2)
    await executor.set_linked_pod(NS, "u0", "arena", 9)
    raw.config_resetstat()
    asked = ["u4", "u0", "nobody", "u1", "u4"]
    assert await executor.get_linked_pods(NS, asked, SVC) == {0: ["u4", "u0"], 1: ["u1"]}
    assert raw.info("commandstats")["cmdstat_mget"]["calls"] == 1
    assert await executor.get_linked_pods(NS, [], SVC) == {}
    assert raw.info("commandstats")["cmdstat_mget"]["calls"] == 1


async def test_linked_services_prunes_what_another_client_left(executor: Awaited, raw: redis.Redis) -> None:
    # The original client expires the string alone, and its field stays.
    raw.hset(LINKS, mapping={"expired": "1", "alive": "2"})
    raw.set("sf:{games:lk:player-42}alive", "2", ex=60)
    assert await executor.get_linked_services(NS, UID) == {"alive": 2}
    assert raw.hgetall(LINKS) == {"alive": "2"}


async def test_same_uid_in_two_namespaces_and_services(executor: Awaited) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 0)
    await executor.set_linked_pod("other", UID, SVC, 1)
    await executor.set_linked_pod(NS, UID, "arena", 2)
    assert await executor.get_linked_services(NS, UID) == {SVC: 0, "arena": 2}
    assert await executor.get_linked_services("other", UID) == {SVC: 1}
