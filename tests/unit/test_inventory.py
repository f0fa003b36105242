"""Whatever order watch events and LISTs arrive in, the newest word on each object counts."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from podlink.domain.inventory import Fact, Inventory
from podlink.domain.states import PodState
from podlink.domain.workloads import Pod, Workload
from unit.builders import NS, SVC, make_pod, make_workload

LOBBY = {(NS, SVC)}


def at(version: int, **fields: Any) -> Pod:
    return make_pod(1, uid="pod", version=version, **fields)


def states(inventory: Inventory, service: str = SVC) -> dict[int, PodState]:
    return {pod_id: pod.state for pod_id, pod in inventory.view(NS, service).pods.items()}


def test_new_object_changes_its_service() -> None:
    inventory = Inventory()
    assert inventory.observe(at(5)) == LOBBY
    assert states(inventory) == {1: PodState.READY}
    assert inventory.services() == [(NS, SVC)]


def test_older_word_changes_nothing() -> None:
    inventory = Inventory()
    inventory.observe(at(5))
    assert inventory.observe(at(5, state=PodState.FAILED)) == set()
    assert inventory.observe(at(4, state=PodState.FAILED)) == set()
    assert states(inventory) == {1: PodState.READY}


def test_versions_are_numbers() -> None:
    inventory = Inventory()
    inventory.observe(at(9))
    assert inventory.observe(at(10, state=PodState.FAILED)) == LOBBY


def test_moved_object_changes_both_services() -> None:
    inventory = Inventory()
    inventory.observe(at(5))
    assert inventory.observe(at(6, service="chat")) == {(NS, SVC), (NS, "chat")}
    assert states(inventory) == {}
    assert states(inventory, "chat") == {1: PodState.READY}
    assert inventory.services() == [(NS, "chat")]


def test_object_that_goes_changes_its_service() -> None:
    inventory = Inventory()
    inventory.observe(at(5))
    assert inventory.forget("pod", 7) == LOBBY
    assert states(inventory) == {}
    assert inventory.services() == []
    assert inventory.forget("pod", 7) == set()


def test_late_word_of_a_deleted_object_does_not_bring_it_back() -> None:
    inventory = Inventory()
    inventory.forget("pod", 7)
    assert inventory.observe(at(6)) == set()
    assert inventory.observe(at(7)) == set()
    assert states(inventory) == {}


def test_late_word_of_a_label_that_was_taken_away_does_not_remove_what_is_newer() -> None:
    inventory = Inventory()
    inventory.observe(at(9))  # a LIST has it with its label back
    assert inventory.forget("pod", 7) == set()  # the watch is still at the edit that removed the label
    assert states(inventory) == {1: PodState.READY}
    assert inventory.version_of("pod") == 9


def test_object_that_gets_its_label_back_is_there_again() -> None:
    inventory = Inventory()
    inventory.observe(at(5))
    inventory.forget("pod", 7)
    assert inventory.observe(at(8)) == LOBBY


def test_namespaces_are_kept_apart() -> None:
    inventory = Inventory()
    inventory.observe(at(5))
    inventory.observe(make_pod(1, PodState.FAILED, uid="other", namespace="chat"))
    assert states(inventory) == {1: PodState.READY}
    assert sorted(inventory.services()) == [("chat", SVC), (NS, SVC)]


def test_list_tells_of_deletions_that_no_watch_reported() -> None:
    inventory = Inventory()
    inventory.observe(at(5))
    inventory.observe(make_pod(2, uid="stays", version=6))
    assert inventory.replace([make_pod(2, uid="stays", version=6)], Pod, 8, None) == LOBBY
    assert states(inventory) == {2: PodState.READY}
    assert inventory.observe(at(7)) == set(), "the watch is still behind the LIST"


def test_list_does_not_remove_what_is_newer_than_it() -> None:
    inventory = Inventory()
    inventory.observe(at(9))
    assert inventory.replace([], Pod, 8, None) == set()
    assert states(inventory) == {1: PodState.READY}


def test_list_older_than_a_deletion_does_not_bring_the_object_back() -> None:
    inventory = Inventory()
    inventory.observe(at(5))
    inventory.forget("pod", 9)
    assert inventory.replace([at(5)], Pod, 8, None) == set()
    assert states(inventory) == {}


def test_list_older_than_an_event_changes_nothing() -> None:
    inventory = Inventory()
    inventory.observe(at(9))
    assert inventory.replace([at(5, state=PodState.FAILED)], Pod, 8, None) == set()
    assert states(inventory) == {1: PodState.READY}


def test_list_of_one_kind_says_nothing_of_the_other() -> None:
    inventory = Inventory()
    inventory.observe(at(5))
    inventory.observe(make_workload(version=5))
    assert inventory.replace([], Workload, 8, None) == LOBBY
    view = inventory.view(NS, SVC)
    assert (set(view.pods), view.workloads) == ({1}, ())


def test_list_of_one_namespace_says_nothing_of_the_others() -> None:
    inventory = Inventory()
    inventory.observe(at(5))
    inventory.observe(make_pod(1, uid="other", namespace="chat"))
    assert inventory.replace([], Pod, 8, "chat") == {("chat", SVC)}
    assert inventory.services() == [(NS, SVC)]


def test_deletions_are_remembered_as_long_as_a_list_can_contradict_them() -> None:
    inventory = Inventory()
    inventory.observe(at(5))
    inventory.forget("pod", 9)
    inventory.expire_deletions(8)
    assert inventory.observe(at(6)) == set()
    assert inventory.version_of("pod") == 9
    inventory.expire_deletions(9)
    assert inventory.version_of("pod") == 0
    assert inventory.observe(at(6)) == LOBBY


def test_versions_of_objects() -> None:
    inventory = Inventory()
    assert inventory.version_of("pod") == 0
    assert inventory.newest_version(Pod) == 0
    inventory.observe(at(5))
    inventory.observe(make_workload(version=12))
    assert inventory.version_of("pod") == 5
    assert (inventory.newest_version(Pod), inventory.newest_version(Workload)) == (5, 12)


def test_everything_is_forgotten_when_versions_start_anew() -> None:
    inventory = Inventory()
    inventory.observe(at(500))
    inventory.forget("gone", 501)
    inventory.clear()
    assert inventory.services() == []
    assert inventory.observe(at(3)) == LOBBY
    assert inventory.observe(make_pod(2, uid="gone", version=4)) == LOBBY


def test_unknown_service_is_an_empty_view_and_stays_unknown() -> None:
    inventory = Inventory()
    assert not inventory.view(NS, "unknown").exists
    assert inventory.services() == []


class Told(msgspec.Struct, frozen=True):
    """One thing the inventory is told: an object, its end, or a LIST."""

    version: int
    uid: str = ""
    fact: Fact | None = None
    listed: tuple[Fact, ...] | None = None

    def tell(self, inventory: Inventory) -> set[tuple[str, str]]:
        if self.listed is not None:
            return inventory.replace(self.listed, Pod, self.version, None)
        return inventory.observe(self.fact) if self.fact is not None else inventory.forget(self.uid, self.version)


@st.composite
def histories(draw: st.DrawFn) -> list[Told]:
    """What happened to three pods, in the order of the versions, with LISTs in between."""
    told: list[Told] = []
    now: dict[str, Pod] = {}
    for version in range(1, draw(st.integers(2, 12))):
        uid = draw(st.sampled_from(["a", "b", "c", "LIST"]))
        if uid == "LIST":
            told.append(Told(version, listed=tuple(now.values())))
        elif uid in now and draw(st.booleans()):
            del now[uid]  # deleted, or its labels taken away; it may come back
            told.append(Told(version, uid))
        else:
            service, state = draw(st.sampled_from([SVC, "chat"])), draw(st.sampled_from(PodState))
            now[uid] = make_pod(1, state, uid=uid, version=version, service=service, owner=None)
            told.append(Told(version, uid, now[uid]))
    return told


def picture(inventory: Inventory) -> dict[str, Any]:
    return {service: inventory.view(NS, service) for service in (SVC, "chat")}


@given(told=histories(), data=st.data())
def test_newest_word_counts_in_any_order(told: list[Told], data: st.DataObject) -> None:
    in_order, shuffled = Inventory(), Inventory()
    for each in told:
        each.tell(in_order)
    for each in data.draw(st.permutations(told)):
        before = picture(shuffled)
        changed = each.tell(shuffled)
        differs = {(NS, service) for service, view in picture(shuffled).items() if view != before[service]}
        assert differs <= changed, "every change is told of"
    assert picture(shuffled) == picture(in_order)
    assert sorted(shuffled.services()) == sorted(in_order.services())
    latest = {each.uid: each for each in told if each.uid}
    there = {uid for uid, each in latest.items() if each.fact is not None}
    assert {pod.uid for view in picture(in_order).values() for pod in view.pods.values()} <= there
