"""Clients of another language send the link scripts two keys and the arguments listed, on the same keys as we do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ResponseError

from podlink.store import operations
from podlink.store.operations import scripts
from sandbox.processes import until_async
from store.harness import LINK, LINKS, LOAD, NS, ONE_PRIMARY, STATE, SVC, UID, VERSIONS, WORKLOAD, Awaited, Wire

if TYPE_CHECKING:
    import redis

    from store.harness import Topology


# They keep no load (compute apart), so loads and links do not add up until the recount.
pytestmark = pytest.mark.usefixtures("leaves_orphans")

BOTH = [LINK, LINKS]


def test_set_link(wire: Wire) -> None:
    assert wire("statefulSetLink", BOTH, SVC, 0, -1) == -1
    assert wire("statefulSetLink", BOTH, SVC, 3, 60) == "0"
    assert 55_000 < wire.milliseconds(LINK) <= 60_000
    assert wire("statefulSetLink", BOTH, SVC, 3, "-1") == "3"
    assert wire.milliseconds(LINK) == -1
    assert sorted(wire.redis.keys()) == sorted(BOTH)


def test_set_link_gives_the_field_a_time_to_live_where_the_server_can(wire: Wire, server: Topology) -> None:
    wire("statefulSetLink", BOTH, SVC, 3, 60)
    if server.expires_fields:
        assert 55_000 < wire.field_milliseconds(LINKS, SVC) <= 60_000
    else:
        assert wire.redis.hgetall(LINKS) == {SVC: "3"}


def test_try_set_link(wire: Wire) -> None:
    assert wire("statefulTrySetLink", BOTH, SVC, 0, -1) == ["0", 1]
    assert wire("statefulTrySetLink", BOTH, SVC, 1, -1) == ["0", 0]
    assert wire("statefulTrySetLink", BOTH, SVC, 1, -1, 2) == ["0", 0]
    assert wire("statefulTrySetLink", BOTH, SVC, 1, 60, 0) == ["1", 1]
    assert wire("statefulTrySetLink", BOTH, SVC, 2, -1) == ["2", 1]


def test_set_link_if_absent(wire: Wire) -> None:
    assert wire("statefulSetLinkIfAbsent", BOTH, SVC, 0, -1) == "0"
    assert wire("statefulSetLinkIfAbsent", BOTH, SVC, 1, -1) == "0"


def test_remove_link(wire: Wire) -> None:
    assert wire("statefulRemoveLink", BOTH, SVC, 0) == 0
    wire("statefulSetLink", BOTH, SVC, 0, -1)
    assert wire("statefulRemoveLink", BOTH, SVC, 60) == 1
    assert wire.redis.keys() == [LINK]
    assert 55_000 < wire.milliseconds(LINK) <= 60_000
    assert wire("statefulRemoveLink", BOTH, SVC, -1) == 1
    assert wire.redis.keys() == []


def test_remove_link_with_id(wire: Wire) -> None:
    wire("statefulSetLink", BOTH, SVC, 0, -1)
    assert wire("statefulRemoveLinkWithId", BOTH, SVC, 1, 0) == 0
    assert wire("statefulRemoveLinkWithId", BOTH, SVC, 0, 0) == 1
    assert wire.redis.keys() == []


@pytest.mark.parametrize("keys", [[LINK, LINKS], [LINK]])
def test_get_link_if_persist(wire: Wire, keys: list[str]) -> None:
    assert wire("statefulGetLinkIfPersist", keys) == -1
    wire.redis.set(LINK, "0")
    assert wire("statefulGetLinkIfPersist", keys) == "0"
    wire.redis.expire(LINK, 60)
    assert wire("statefulGetLinkIfPersist", keys) == -1


@pytest.mark.parametrize("keys", [[LINK, LINKS], [LINKS]])
def test_get_link_service(wire: Wire, keys: list[str]) -> None:
    assert wire("statefulGetLinkService", keys) == []
    wire("statefulSetLink", BOTH, SVC, 0, -1)
    wire("statefulSetLink", ["sf:{games:lk:player-42}arena", LINKS], "arena", 1, -1)
    found = wire("statefulGetLinkService", keys)
    assert dict(zip(found[::2], found[1::2], strict=True)) == {SVC: "0", "arena": "1"}


@pytest.mark.only_on(*ONE_PRIMARY, reason="these keys are of two slots of a Cluster")
async def test_compute_derives_the_services_keys(wire: Wire, executor: Awaited) -> None:
    assert wire("statefulComputeLinkIfAbsent", BOTH, SVC, -1) == -1
    wire.redis.hset(STATE, mapping={"0": "Ready", "1": "Ready"})
    first = int(wire("statefulComputeLinkIfAbsent", BOTH, SVC, -1))
    assert await executor.get_linked_services(NS, UID) == {SVC: first}
    assert (await executor.get_service(NS, SVC)).loads == {first: 1, 1 - first: 0}
    assert await executor.compute_linked_pod_if_absent(NS, "second", SVC) == 1 - first
    assert wire("statefulComputeLinkIfAbsent", BOTH, SVC, 60) == str(first)
    assert await executor.get_linked_pod_if_persist(NS, UID, SVC) == first


@pytest.mark.only_on(*ONE_PRIMARY, reason="these keys are of two slots of a Cluster")
def test_compute_refuses_a_hash_it_cannot_derive_from(wire: Wire) -> None:
    with pytest.raises(ResponseError, match="is not the hash of a uid"):
        wire("statefulComputeLinkIfAbsent", ["a", "b"], SVC, -1)


def test_set_state(wire: Wire) -> None:
    assert wire("statefulSetState", [STATE], 0, "Ready") == 1
    assert wire("statefulSetState", [STATE], 1, "Pending", 9) == 1
    assert wire("statefulSetState", [STATE], 1, "Ready", "10") == 1
    assert wire("statefulSetState", [STATE], 1, "Pending", 9) == 0
    assert wire.redis.hgetall(STATE) == {"0": "Ready", "1": "Ready"}
    assert wire.redis.hgetall(VERSIONS) == {"1": "10"}
    assert wire("statefulSetState", [STATE], 0, "") == 1
    assert wire.redis.hgetall(STATE) == {"1": "Ready"}


def test_get_service_pod(wire: Wire) -> None:
    assert wire("statefulGetServicePod", [STATE]) == -1
    wire.redis.hset(STATE, mapping={"0": "Ready", "1": "Draining"})
    assert wire("statefulGetServicePod", [STATE]) == "0"
    assert wire.loads() == {"0": "1"}
    assert wire("statefulGetServicePod", [STATE], 0) == "0"
    assert wire("statefulGetServicePod", [STATE], 0) == -1
    assert wire.loads() == {}


def test_get_service(wire: Wire) -> None:
    assert wire("statefulGetService", [STATE]) == [[], []]
    wire.redis.hset(STATE, "0", "Ready")
    wire.redis.hset(LOAD, "0", "3")
    assert wire("statefulGetService", [STATE]) == [["0", "Ready"], ["0", "3"]]


SHORTEST = {
    "statefulSetLink": (BOTH, [SVC, 1, -1]),
    "statefulTrySetLink": (BOTH, [SVC, 1, -1]),
    "statefulSetLinkIfAbsent": (BOTH, [SVC, 1, -1]),
    "statefulRemoveLink": (BOTH, [SVC, 0]),
    "statefulRemoveLinkWithId": (BOTH, [SVC, 1, 0]),
    "statefulGetLinkIfPersist": (BOTH, []),
    "statefulComputeLinkIfAbsent": (BOTH, [SVC, -1]),
    "statefulGetLinkService": (BOTH, []),
    "statefulSetState": ([STATE], [1, "Ready", ""]),
    "statefulGetServicePod": ([STATE], []),
    "statefulGetService": ([STATE], []),
}
"""What a client has to send at least."""


@pytest.mark.only_on(*ONE_PRIMARY, reason="compute derives keys of two slots of a Cluster")
@pytest.mark.parametrize("name", SHORTEST)
async def test_shortest_form_finds_and_leaves_what_ours_does(wire: Wire, executor: Awaited, name: str) -> None:
    """On a link and a state that we wrote, every script finds, and does, what it does when we call it ourselves."""
    ours = {
        "statefulSetLink": lambda: executor.set_linked_pod(NS, UID, SVC, 1),
        "statefulTrySetLink": lambda: executor.try_set_linked_pod(NS, UID, SVC, 1),
        "statefulSetLinkIfAbsent": lambda: executor.set_linked_pod_if_absent(NS, UID, SVC, 1),
        "statefulRemoveLink": lambda: executor.remove_linked_pod(NS, UID, SVC),
        "statefulRemoveLinkWithId": lambda: executor.remove_linked_pod_with_id(NS, UID, SVC, 1),
        "statefulGetLinkIfPersist": lambda: executor.get_linked_pod_if_persist(NS, UID, SVC),
        "statefulComputeLinkIfAbsent": lambda: executor.compute_linked_pod_if_absent(NS, UID, SVC),
        "statefulGetLinkService": lambda: executor.get_linked_services(NS, UID),
        "statefulSetState": lambda: executor.set_service_state(NS, SVC, 1, "Ready"),
        "statefulGetServicePod": lambda: executor.run(operations.reserve_service_pod(NS, SVC)),
        "statefulGetService": lambda: executor.get_service(NS, SVC),
    }
    assert set(ours) == set(SHORTEST) == {script.name for script in scripts.ALL}
    left = []
    for call in (ours[name], lambda: asyncio.to_thread(wire, name, SHORTEST[name][0], *SHORTEST[name][1])):
        wire.redis.flushall()
        await executor.set_linked_pod(NS, UID, SVC, 0)
        await executor.set_service_state(NS, SVC, 1, "Ready")
        assert await call() not in (None, {})
        left.append([wire.redis.get(LINK), *map(wire.redis.hgetall, (LINKS, STATE, VERSIONS))])
    assert left[0] == left[1]


async def test_plain_commands_read_what_we_write(wire: Wire, executor: Awaited) -> None:
    await executor.set_service_state(NS, SVC, 0, "Ready", version=7)
    await executor.set_workload_state(NS, SVC, "Available", version=7)
    await executor.set_linked_pod(NS, UID, SVC, 0)
    await executor.set_linked_pod(NS, UID, "arena", 2, persist_seconds=60)
    assert wire.redis.hgetall(STATE) == {"0": "Ready"}
    assert wire.redis.get(WORKLOAD) == "Available"
    assert wire.redis.mget(LINK, "sf:{games:lk:player-42}arena") == ["0", "2"]
    assert wire.redis.hgetall(LINKS) == {SVC: "0", "arena": "2"}
    assert wire.redis.ttl("sf:{games:lk:player-42}arena") > 0


async def test_we_read_what_plain_commands_write(wire: Wire, executor: Awaited) -> None:
    wire.redis.hset(STATE, mapping={"0": "Ready", "3": "Draining"})
    wire.redis.set(WORKLOAD, "Degraded")
    wire.redis.set(LINK, "3")
    wire.redis.hset(LINKS, SVC, "3")
    assert await executor.get_service_state(NS, SVC) == {0: "Ready", 3: "Draining"}
    assert await executor.get_workload_states(NS, [SVC]) == {SVC: "Degraded"}
    assert await executor.get_linked_pods(NS, [UID, "nobody"], SVC) == {3: [UID]}
    assert await executor.get_linked_pod_if_persist(NS, UID, SVC) == 3
    assert await executor.get_linked_services(NS, UID) == {SVC: 3}
    assert await executor.try_set_linked_pod(NS, UID, SVC, 0) == (False, 3)
    assert await executor.compute_linked_pod_if_absent(NS, UID, SVC) == 3
    # What they write has no version, so one of ours passes.
    assert await executor.set_service_state(NS, SVC, 0, "NotReady", version=1) is True
    assert await executor.remove_linked_pod_with_id(NS, UID, SVC, 3) is True
    assert wire.redis.exists(LINK, LINKS) == 0


async def test_both_see_each_others_links(wire: Wire, executor: Awaited) -> None:
    wire("statefulSetLink", BOTH, SVC, 0, -1)
    assert await executor.get_linked_pod(NS, UID, SVC) == 0
    assert await executor.try_set_linked_pod(NS, UID, SVC, 1) == (False, 0)
    assert await executor.set_linked_pod(NS, UID, SVC, 2, persist_seconds=60) == 0
    assert wire("statefulSetLinkIfAbsent", BOTH, SVC, 5, -1) == "2"
    assert wire("statefulTrySetLink", BOTH, SVC, 3, -1) == ["3", 1]
    assert await executor.remove_linked_pod_with_id(NS, UID, SVC, 2) is False
    assert await executor.remove_linked_pod_with_id(NS, UID, SVC, 3) is True
    assert wire("statefulGetLinkService", [LINKS]) == []


async def test_moving_a_link_another_client_left_temporary(wire: Wire, executor: Awaited) -> None:
    # The original client sets the string's time to live only; ours must not take it for a counted link.
    await executor.set_linked_pod(NS, "counted", SVC, 1)
    wire.redis.set(LINK, "1", ex=60)
    wire.redis.hset(LINKS, SVC, "1")
    await executor.set_linked_pod(NS, UID, SVC, 2)
    assert wire.loads() == {"1": "1", "2": "1"}


@pytest.mark.parametrize("end", ["set", "try_set", "remove", "remove_with_id"])
async def test_ending_a_link_that_another_client_left_unlisted(wire: Wire, executor: Awaited, end: str) -> None:
    # Its field is gone, so nobody ever counted it: the unit of its pod belongs to another link.
    await executor.set_linked_pod(NS, "counted", SVC, 1)
    wire.redis.set(LINK, "1")
    if end == "set":
        await executor.set_linked_pod(NS, UID, SVC, 2)
    elif end == "try_set":
        await executor.try_set_linked_pod(NS, UID, SVC, 2, expected=1)
    elif end == "remove":
        await executor.remove_linked_pod(NS, UID, SVC)
    else:
        await executor.remove_linked_pod_with_id(NS, UID, SVC, 1)
    assert wire.loads() == {"1": "1"} | ({"2": "1"} if "set" in end else {})


async def test_link_set_by_us_and_ended_by_another_client_gives_its_load_back(wire: Wire, executor: Awaited) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 1, persist_seconds=1)
    assert wire("statefulRemoveLink", BOTH, SVC, 0) == 1

    async def settled() -> bool:
        return not (await executor.get_service(NS, SVC)).loads

    await until_async(settled, 5, "the load to go when the link would have expired")


def test_every_script_is_sent_whole_by_eval_too(raw: redis.Redis) -> None:
    text = scripts.SET_LINK.text
    assert raw.eval(text, 2, LINK, LINKS, SVC, "4", "-1") == -1
    assert raw.hgetall(LINKS) == {SVC: "4"}


def test_every_script_loads_under_the_digest_we_call_it_by(raw: redis.Redis) -> None:
    assert [raw.script_load(script.text) for script in scripts.ALL] == [script.sha1 for script in scripts.ALL]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("statefulSetLink", [SVC, "1", "soon"]),
        ("statefulTrySetLink", [SVC, "1", "soon"]),
        ("statefulSetLinkIfAbsent", [SVC, "1", "soon"]),
        ("statefulComputeLinkIfAbsent", [SVC, "soon"]),
        ("statefulRemoveLink", [SVC, "soon"]),
        ("statefulRemoveLinkWithId", [SVC, "1", "soon"]),
    ],
)
def test_a_time_to_live_that_is_no_number_writes_nothing(wire: Wire, name: str, arguments: list[str]) -> None:
    wire.redis.hset(STATE, "0", "Ready")
    with pytest.raises(ResponseError):
        wire(name, BOTH, *arguments)
    assert wire.redis.keys() == [STATE]
