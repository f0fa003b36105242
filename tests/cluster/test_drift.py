"""What nobody tells the operator: links and states that change in Redis behind its back. The sweep finds them.

This operator resyncs every second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cluster.harness import NO_LINK, Kube, Wire
from cluster.operators import Operator
from sandbox.processes import eventually

if TYPE_CHECKING:
    from podlink import sync

LINKED = ("Normal", "Linked")
DRIFTED = ("Warning", "LinkDrifted")


@pytest.fixture(scope="module")
def operator_flags() -> list[str]:
    return ["--resync-seconds", "1"]


@pytest.fixture(scope="module", autouse=True)
def lobby(kube: Kube, wire: Wire) -> None:
    kube.stateful_set("lobby", 3)
    eventually(wire.states, {"0": "Ready", "1": "Ready", "2": "Ready"})


@pytest.fixture(scope="module")
def brittle(kube: Kube, wire: Wire) -> str:
    """A service whose loads are no longer right, because tests take links apart by raw commands."""
    kube.stateful_set("brittle", 2)
    eventually(lambda: wire.states("brittle"), {"0": "Ready", "1": "Ready"})
    return "brittle"


def linked(kube: Kube, name: str, **spec: object) -> None:
    kube.link(name, podId=1, **spec)
    eventually(lambda: kube.report(name), ("Linked", "Linked", 1))


@pytest.mark.parametrize("policy", ["TrySet", "Set", "IfAbsent"])
def test_a_link_that_was_removed_is_made_again(
    kube: Kube, wire: Wire, gateway: sync.StatefulExecutor, policy: str
) -> None:
    name = f"removed-{policy.lower()}"
    linked(kube, name, policy=policy)
    before = kube.get("podlinks", name)

    gateway.remove_linked_pod(kube.namespace, name, "lobby")
    eventually(lambda: wire.link(name), ("1", "1"))
    eventually(lambda: kube.events(name), [LINKED, DRIFTED])
    assert kube.note(name, "LinkDrifted") == (
        f"Redis holds no link for uid {name} instead of the link to pod 1; repaired"
    )
    assert kube.get("podlinks", name) == before


def test_under_set_a_link_that_was_overwritten_is_put_back(
    kube: Kube, wire: Wire, gateway: sync.StatefulExecutor
) -> None:
    linked(kube, "stubborn", policy="Set")
    gateway.set_linked_pod(kube.namespace, "stubborn", "lobby", 2)

    eventually(lambda: wire.link("stubborn"), ("1", "1"))
    eventually(lambda: kube.events("stubborn"), [LINKED, DRIFTED])
    assert kube.note("stubborn", "LinkDrifted") == (
        "Redis holds a link to pod 2 for uid stubborn instead of the link to pod 1; repaired"
    )
    eventually(lambda: kube.status("stubborn").get("previousPodId"), 2)


def test_under_try_set_a_permanent_link_of_somebody_else_wins(
    kube: Kube, wire: Wire, gateway: sync.StatefulExecutor
) -> None:
    linked(kube, "polite")
    gateway.set_linked_pod(kube.namespace, "polite", "lobby", 2)

    eventually(lambda: kube.report("polite"), ("Conflict", "HeldByAnotherPod", None))
    assert kube.status("polite")["previousPodId"] == 1
    gateway.remove_linked_pod(kube.namespace, "polite", "lobby")
    eventually(lambda: kube.report("polite"), ("Linked", "Linked", 1))
    assert wire.link("polite") == ("1", "1")
    eventually(lambda: kube.events("polite"), [LINKED, ("Warning", "HeldByAnotherPod"), LINKED])


def test_under_try_set_a_temporary_link_of_somebody_else_is_replaced(
    kube: Kube, wire: Wire, gateway: sync.StatefulExecutor
) -> None:
    linked(kube, "firm")
    gateway.set_linked_pod(kube.namespace, "firm", "lobby", 2, persist_seconds=600)

    eventually(lambda: wire.link("firm"), ("1", "1"))
    assert wire.milliseconds("firm") == -1
    eventually(lambda: kube.events("firm"), [LINKED, DRIFTED])


def test_without_podid_a_link_that_somebody_moved_is_followed(
    kube: Kube, wire: Wire, gateway: sync.StatefulExecutor
) -> None:
    gateway.set_linked_pod(kube.namespace, "follower", "lobby", 0)
    kube.link("follower")
    eventually(lambda: kube.report("follower"), ("Linked", "AlreadyLinked", 0))
    gateway.set_linked_pod(kube.namespace, "follower", "lobby", 2)

    eventually(lambda: kube.report("follower"), ("Linked", "AlreadyLinked", 2))
    assert kube.status("follower")["previousPodId"] == 0
    assert wire.link("follower") == ("2", "2")


def test_under_if_absent_a_link_that_was_overwritten_is_adopted(
    kube: Kube, wire: Wire, gateway: sync.StatefulExecutor
) -> None:
    linked(kube, "yielding", policy="IfAbsent")
    gateway.set_linked_pod(kube.namespace, "yielding", "lobby", 2)

    eventually(lambda: kube.report("yielding"), ("Linked", "AlreadyLinked", 2))
    assert kube.status("yielding")["owned"] is False
    kube.unlink("yielding")
    assert wire.link("yielding") == ("2", "2")


@pytest.mark.parametrize("damage", ["field", "string", "expiry"])
def test_a_link_that_lost_a_part_is_whole_again(kube: Kube, wire: Wire, brittle: str, damage: str) -> None:
    name = f"no-{damage}"
    linked(kube, name, service=brittle)
    uid_hash = f"sf:{{{kube.namespace}:lk:{name}}}"
    if damage == "field":
        wire.redis.hdel(uid_hash, brittle)
    elif damage == "string":
        wire.redis.delete(f"{uid_hash}{brittle}")
    else:
        wire.redis.expire(f"{uid_hash}{brittle}", 600)

    eventually(lambda: (wire.link(name, brittle), wire.milliseconds(name, brittle)), (("1", "1"), -1))
    eventually(lambda: kube.events(name), [LINKED, DRIFTED])


def test_a_temporary_link_is_repaired_for_what_is_left_of_its_time(
    kube: Kube, wire: Wire, brittle: str, gateway: sync.StatefulExecutor
) -> None:
    linked(kube, "limited", service=brittle, persistSeconds=600)
    expires = kube.status("limited")["expiresAt"]
    assert 0 < wire.milliseconds("limited", brittle) <= 600_000

    wire.redis.persist(f"sf:{{{kube.namespace}:lk:limited}}{brittle}")
    eventually(lambda: 0 < wire.milliseconds("limited", brittle) <= 602_000, expected=True)
    gateway.remove_linked_pod(kube.namespace, "limited", brittle)
    eventually(lambda: wire.link("limited", brittle), ("1", "1"))
    assert 500_000 < wire.milliseconds("limited", brittle) <= 602_000
    assert kube.status("limited")["expiresAt"] == expires


def test_an_expired_link_is_not_made_again(kube: Kube, wire: Wire, operator: Operator) -> None:
    # It is Linked for so short a time that nobody need see it.
    kube.link("over", podId=1, persistSeconds=1)
    eventually(lambda: kube.report("over"), ("Expired", "Expired", None))

    operator.await_sweeps(2)
    assert kube.report("over") == ("Expired", "Expired", None)
    assert wire.link("over") == NO_LINK
    eventually(lambda: kube.events("over"), [LINKED, ("Normal", "Expired")])


def test_a_status_that_is_right_is_not_written_again(
    kube: Kube, wire: Wire, gateway: sync.StatefulExecutor, operator: Operator
) -> None:
    gateway.set_linked_pod(kube.namespace, "calm-conflict", "lobby", 0)
    gateway.set_linked_pod(kube.namespace, "calm-adopted", "lobby", 0)
    for name, spec, phase in [
        ("calm-linked", {"podId": 1}, "Linked"),
        ("calm-temporary", {"podId": 1, "persistSeconds": 600}, "Linked"),
        ("calm-adopted", {"podId": 1, "policy": "IfAbsent"}, "Linked"),
        ("calm-conflict", {"podId": 1}, "Conflict"),
        ("calm-pending", {"podId": 9}, "Pending"),
    ]:
        kube.link(name, **spec)
        eventually(lambda name=name: kube.report(name)[0], phase)
    before = [each for each in kube.list("podlinks") if each["metadata"]["name"].startswith("calm-")]
    events = [each for each in kube.list("events") if each["regarding"]["name"].startswith("calm-")]

    operator.await_sweeps(3)
    assert [each for each in kube.list("podlinks") if each["metadata"]["name"].startswith("calm-")] == before
    assert len(before) == 5
    # Each told of its state once; the Events of the last may still have been under way.
    told = [each for each in kube.list("events") if each["regarding"]["name"].startswith("calm-")]
    assert {each["regarding"]["name"] for each in told} == {each["metadata"]["name"] for each in before}
    assert len(told) == 5 >= len(events)


def test_states_that_somebody_wrote_are_corrected(kube: Kube, wire: Wire, operator: Operator) -> None:
    right = {"0": "Ready", "1": "Ready", "2": "Ready"}
    states, workload = f"sf:{{{kube.namespace}:state:lobby}}", f"sf:{{{kube.namespace}:workload:lobby}}"
    repaired = operator.metric('podlink_sweep_repairs_total{kind="pod_state"}')
    for damage in (
        [("HSET", states, "1", "Failed"), ("SET", workload, "Unavailable")],
        [("HDEL", states, "1"), ("DEL", workload)],
        [("HSET", states, "9", "Ready"), ("DEL", workload, f"{workload}rv")],
        [("DEL", states)],
        [("DEL", states, f"{states}rv")],
    ):
        for command in damage:
            wire.redis.execute_command(*command)
        eventually(wire.service, (right, "Available"))
    assert operator.metric('podlink_sweep_repairs_total{kind="pod_state"}') >= repaired + 5


def test_a_service_that_another_cluster_keeps_is_left_alone(
    kube: Kube, wire: Wire, gateway: sync.StatefulExecutor, operator: Operator
) -> None:
    gateway.set_service_state(kube.namespace, "foreign", 0, "Ready")
    gateway.set_workload_state(kube.namespace, "foreign", "Available")

    operator.await_sweeps(2)
    assert wire.service("foreign") == ({"0": "Ready"}, "Available")


def test_after_all_this_every_load_is_the_number_of_links(
    kube: Kube, wire: Wire, gateway: sync.StatefulExecutor
) -> None:
    gateway.get_service(kube.namespace, "lobby")  # takes expired links off the loads, as every pick does

    assert wire.all_loads()["lobby"] == wire.all_links()["lobby"]


def test_links_that_come_and_go_are_no_drift(kube: Kube, operator: Operator) -> None:
    repaired = 'podlink_sweep_repairs_total{kind="podlink"}'
    swept = 'podlink_sweep_seconds_count{cause="resync"}'
    before, until_sweep = operator.metric(repaired), operator.metric(swept) + 4
    number = 0
    while operator.metric(swept) < until_sweep:
        names = [f"passing-{number}-{each}" for each in range(25)]
        for name in names:
            kube.link(name)
        for name in names:
            kube.edit(name, podId=2)
            kube.delete("podlinks", name)
        number += 1
    eventually(lambda: [each for each in kube.list("podlinks") if "passing" in each["metadata"]["name"]], [])
    assert operator.metric(repaired) == before
