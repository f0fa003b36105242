"""Which PodLink holds a link, and whom a change concerns: nobody is forgotten, and nobody is bothered."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlink.domain.decide import Facts, LinkRecord, decide
from podlink.domain.podlinks import TERMINAL, OnPodLoss, Phase, PodLink, Policy, Reason, Status
from podlink.domain.registry import PodLinks
from podlink.domain.services import ServiceView
from podlink.domain.states import PodState
from unit.builders import NOTHING, NS, adopted, linked, lobby, permanent, podlink, reported, temporary, window
from unit.world import OTHERS, World

EXPIRED = reported(Phase.EXPIRED, Reason.EXPIRED)


def named(name: str, created: int = 0, version: int = 1, **fields: Any) -> PodLink:
    return podlink(
        fields.pop("pod_id", None), name=name, created=f"2024-01-01T00:00:{created:02}Z", version=version, **fields
    )


def names(keys: set[tuple[str, str]]) -> set[str]:
    return {name for _, name in keys}


def holder(links: PodLinks, name: str) -> str | None:
    link = links.get((NS, name))
    assert link is not None
    found = links.holder(link)
    return found.name if found else None


def test_new_podlink_is_looked_at() -> None:
    links = PodLinks()
    assert names(links.observe(named("a"))) == {"a"}
    assert len(links) == 1
    assert [link.name for link in links] == ["a"]


def test_own_writes_that_come_back_concern_nobody() -> None:
    links = PodLinks()
    links.observe(named("a", version=7))
    assert links.observe(named("a", version=7)) == set()
    assert links.observe(named("a", version=6, status=linked(1))) == set()
    assert links.get((NS, "a")) == named("a", version=7)


def test_oldest_holds_and_the_others_take_over_in_turn() -> None:
    links = PodLinks()
    for link in (named("b", 2), named("c", 3), named("a", 1)):
        links.observe(link)
    assert [holder(links, name) for name in "abc"] == [None, "a", "a"]
    assert names(links.forget((NS, "a"), "a-uid", 9)) == {"b", "c"}
    assert [holder(links, name) for name in "bc"] == [None, "b"]


def test_uids_decide_within_a_second() -> None:
    links = PodLinks()
    links.observe(named("a", 1, uid="2"))
    assert names(links.observe(named("b", 1, uid="1"))) == {"a", "b"}, "the one that held must let go"
    assert [holder(links, name) for name in "ab"] == ["b", None]


@pytest.mark.parametrize(
    "other",
    [named("b", 2, user="player-43"), named("b", 2, service="chat"), named("b", 2, namespace="chat")],
    ids=["uid", "service", "namespace"],
)
def test_podlinks_for_different_links_do_not_meet(other: PodLink) -> None:
    links = PodLinks()
    links.observe(named("a", 1))
    assert links.observe(other) == {other.key}
    assert links.holder(other) is None


def test_settled_podlink_holds_nothing() -> None:
    links = PodLinks()
    links.observe(named("b", 2))
    links.observe(named("a", 1, version=2, status=linked(1, left=5), persist=60))
    assert holder(links, "b") == "a"
    assert names(links.observe(named("a", 1, version=3, status=EXPIRED, persist=60))) == {"a", "b"}
    assert holder(links, "b") is None
    assert names(links.observe(named("a", 1, version=4, status=EXPIRED, persist=60, edited=True))) == {"a", "b"}
    assert holder(links, "b") == "a", "an edit wakes it up"


def test_deletion_of_a_settled_podlink_leaves_the_next_one_alone() -> None:
    links = PodLinks()
    links.observe(named("a", 1, status=EXPIRED, persist=60))
    links.observe(named("b", 2, status=linked(1)))
    assert names(links.observe(named("a", 1, version=2, status=EXPIRED, persist=60, deleting=True))) == {"a"}
    assert holder(links, "b") is None


def test_deleted_podlink_holds_until_it_is_gone() -> None:
    links = PodLinks()
    links.observe(named("a", 1, status=linked(1)))
    links.observe(named("b", 2))
    links.observe(named("a", 1, version=2, status=linked(1), deleting=True))
    assert holder(links, "b") == "a"


def test_deleted_podlink_that_has_released_its_link_holds_nothing() -> None:
    """It stays for the finalizers of others."""
    links = PodLinks()
    links.observe(named("a", 1, status=linked(1)))
    links.observe(named("b", 2))
    released = named("a", 1, version=2, status=linked(1), deleting=True, finalizers=("somebody.else/guard",))
    assert names(links.observe(released)) == {"a", "b"}
    assert holder(links, "b") is None


def test_older_one_is_told_when_the_younger_one_has_let_go() -> None:
    """It may have found its link there, and the younger one took it away again."""
    links = PodLinks()
    links.observe(named("a", 1))
    links.observe(named("b", 2, version=1, status=linked(1)))
    duplicate = reported(Phase.CONFLICT, Reason.DUPLICATE)
    assert names(links.observe(named("b", 2, version=2, status=duplicate))) == {"a", "b"}


def test_report_of_a_link_does_not_bother_the_others() -> None:
    links = PodLinks()
    links.observe(named("a", 1))
    links.observe(named("b", 2))
    assert names(links.observe(named("a", 1, version=2, status=linked(1)))) == {"a"}


def test_object_made_anew_under_the_same_name() -> None:
    links = PodLinks()
    links.observe(named("a", 1))
    links.observe(named("b", 2))
    links.observe(named("c", 4, user="player-43"))
    again = named("a", 3, version=5, uid="another", user="player-43")
    assert names(links.observe(again)) == {"a", "b", "c"}, "those it left, and those it meets"
    assert [holder(links, name) for name in "bc"] == [None, "a"]
    assert links.forget((NS, "a"), "a-uid", 4) == set(), "the end of the one before"
    assert links.get((NS, "a")) == again


def test_late_word_of_a_deleted_podlink_does_not_bring_it_back() -> None:
    links = PodLinks()
    links.observe(named("a", version=3))
    links.forget((NS, "a"), "a-uid", 5)
    assert links.observe(named("a", version=4)) == set()
    assert links.get((NS, "a")) is None
    links.expire_deletions(4)
    assert links.observe(named("a", version=4)) == set()
    links.expire_deletions(5)
    assert names(links.observe(named("a", version=4))) == {"a"}


def test_list_tells_of_deletions_that_no_watch_reported() -> None:
    links = PodLinks()
    links.observe(named("a", 1, version=3))
    links.observe(named("b", 2, version=4))
    assert names(links.replace([named("b", 2, version=4)], 9, None)) == {"b"}, "b takes over"
    assert links.get((NS, "a")) is None


def test_list_does_not_remove_what_is_newer_than_it() -> None:
    links = PodLinks()
    links.observe(named("a", version=10))
    assert links.replace([], 9, None) == set()
    assert links.get((NS, "a")) is not None


def test_list_of_one_namespace_says_nothing_of_the_others() -> None:
    links = PodLinks()
    links.observe(named("a"))
    links.replace([], 9, "chat")
    assert links.get((NS, "a")) is not None


def test_everything_is_forgotten_when_versions_start_anew() -> None:
    links = PodLinks()
    links.observe(named("a", version=500))
    links.forget((NS, "b"), "b-uid", 501)
    links.clear()
    assert len(links) == 0
    assert links.newest_version == 0
    assert links.concerned(None, lobby()) == set()
    assert names(links.observe(named("b", version=2))) == {"b"}
    assert links.newest_version == 2


def test_question_about_an_unknown_podlink_leaves_no_trace() -> None:
    links = PodLinks()
    assert links.holder(named("a")) is None
    assert not links._rivals


@given(order=st.permutations(range(6)), data=st.data())
def test_indexes_do_not_grow_and_do_not_depend_on_the_order(order: list[int], data: st.DataObject) -> None:
    links = PodLinks()
    versions = [
        named("ab"[i % 2], i % 2, version=i + 1, pod_id=data.draw(st.none() | st.integers(0, 2))) for i in range(6)
    ]
    for i in order:
        links.observe(versions[i])
    assert [links.get((NS, name)) for name in "ab"] == versions[4:]
    assert holder(links, "b") == "a"
    for name in data.draw(st.permutations("ab")):
        links.forget((NS, name), f"{name}-uid", 9)
    assert not links._links
    assert not links._rivals
    assert not links._interested


TO_1, TO_2 = named("to-1", user="1", pod_id=1, status=linked(1)), named("to-2", user="2", pod_id=2, status=linked(2))
PICKED_1 = named("picked-1", user="3", status=linked(1))
WAITS_FOR_1 = named("waits-for-1", user="4", pod_id=1, status=reported(Phase.PENDING, Reason.POD_NOT_FOUND))
WAITS_FOR_ANY = named("waits-for-any", user="5", status=reported(Phase.PENDING, Reason.NO_READY_POD))
RELINKS = named("relinks", user="6", status=linked(1, reason=Reason.POD_LOST, ok=False), loss=OnPodLoss.RELINK)
IS_EXPIRED = named("expired", user="7", pod_id=1, status=EXPIRED, persist=60)
IS_DELETED = named("deleted", user="8", pod_id=1, status=linked(1), deleting=True)
ADOPTED_1 = named("adopted-1", user="9", status=adopted(1), policy=Policy.IF_ABSENT)
ELSEWHERE = named("elsewhere", user="10", pod_id=1, service="chat")
LINKS = (TO_1, TO_2, PICKED_1, WAITS_FOR_1, WAITS_FOR_ANY, RELINKS, IS_EXPIRED, IS_DELETED, ADOPTED_1, ELSEWHERE)
AT_1 = {"to-1", "picked-1", "waits-for-1", "relinks", "adopted-1"}
ANY = {"waits-for-any", "relinks"}


@pytest.mark.parametrize(
    ("before", "after", "concerned"),
    [
        pytest.param(lobby(), lobby(), set(), id="nothing changed"),
        pytest.param(lobby(), lobby([0, 2], {1: PodState.NOT_READY}), set(), id="pod 1 is not ready any more"),
        pytest.param(lobby(), lobby([0, 2], {1: PodState.TERMINATING}), set(), id="pod 1 is restarted"),
        pytest.param(lobby([0, 2], {1: PodState.NOT_READY}), lobby(), ANY, id="pod 1 is Ready"),
        pytest.param(lobby([1, 2], {0: PodState.PENDING}), lobby(), ANY, id="pod 0 is Ready"),
        pytest.param(lobby(), lobby([0, 2]), AT_1, id="pod 1 is gone for the moment"),
        pytest.param(lobby([0, 2]), lobby([0, 2], {1: PodState.PENDING}), AT_1, id="pod 1 is back"),
        pytest.param(lobby([0, 2]), lobby(), AT_1 | ANY, id="pod 1 is back and Ready"),
        pytest.param(
            lobby([0], {1: PodState.TERMINATING}),
            lobby([0], {1: PodState.TERMINATING}, replicas=2),
            {"to-2"},
            id="pod 1 is restarted and pod 2 expected no more",
        ),
        pytest.param(
            lobby([0, 2], {1: PodState.TERMINATING}, replicas=2),
            lobby([0, 2], {1: PodState.TERMINATING}, replicas=1),
            AT_1,
            id="pod 1 does not come back",
        ),
        pytest.param(
            lobby([0], {1: PodState.TERMINATING}, replicas=1), lobby([0], replicas=1), AT_1, id="pod 1 is gone for good"
        ),
        pytest.param(lobby([0, 1]), lobby([0, 1], replicas=2), {"to-2"}, id="pod 2 is expected no more"),
        pytest.param(lobby(), lobby(replicas=5), set(), id="more pods are expected"),
        pytest.param(lobby(), lobby([0, 1, 2, 3], replicas=5), ANY, id="another pod is Ready"),
        pytest.param(
            lobby([0, 1], {2: PodState.NOT_READY}),
            lobby([1, 2], {0: PodState.NOT_READY}),
            ANY,
            id="another pod is Ready in place of one",
        ),
        pytest.param(NOTHING, lobby((), replicas=0), AT_1 | ANY | {"to-2"}, id="the service appears"),
        pytest.param(lobby((), replicas=0), NOTHING, AT_1 | ANY | {"to-2"}, id="the service disappears"),
        pytest.param(None, lobby(), AT_1 | ANY | {"to-2"}, id="the service was not known before"),
    ],
)
def test_whom_a_change_concerns(before: ServiceView | None, after: ServiceView, concerned: set[str]) -> None:
    links = PodLinks()
    for link in LINKS:
        links.observe(link)
    assert names(links.concerned(before, after)) == concerned


PODS = st.dictionaries(st.integers(0, 2), st.sampled_from(PodState), max_size=3)
REPLICAS = st.none() | st.integers(0, 3)


def at_rest(link: PodLink, record: LinkRecord, pods: dict[int, PodState], replicas: int | None) -> World:
    """A world in which the operator has looked at the PodLink until there was nothing left to do."""
    world = World()
    world.pods, world.replicas = pods, replicas
    world.write_states()
    redis = world.redis
    redis.pod, redis.listed, redis.author = record.pod_id, record.listed, OTHERS
    redis.ends = record.ttl_ms
    spec = {name: value for name, value in msgspec.to_builtins(link.spec).items() if value is not None}
    world.api.create(link.name, spec)
    world.notice(link.name)
    world.run_for(3, limit=10)
    return world


def essence(facts: Facts) -> tuple[object, ...]:
    """What is done or reported, without the names of pods in the message."""
    decision = decide(facts)
    status = decision.status or Status()
    condition = status.ready
    return decision.action, status.phase, status.pod_id, status.pod_name, condition.status, condition.reason


@given(
    link=st.builds(
        podlink,
        st.none() | st.integers(0, 2),
        st.sampled_from(Policy),
        loss=st.sampled_from([OnPodLoss.KEEP, OnPodLoss.RELEASE]),
        persist=st.sampled_from([-1, 600]),
    )
    | st.builds(podlink, st.none(), st.sampled_from(Policy), loss=st.just(OnPodLoss.RELINK)),
    record=st.sampled_from([LinkRecord(), permanent(0), permanent(1), permanent(2), temporary(1), window(2, 500)]),
    pods=PODS,
    replicas=REPLICAS,
    later=PODS,
    later_replicas=REPLICAS,
)
def test_nobody_whose_answer_changes_is_forgotten(
    link: PodLink,
    record: LinkRecord,
    pods: dict[int, PodState],
    replicas: int | None,
    later: dict[int, PodState],
    later_replicas: int | None,
) -> None:
    world = at_rest(link, record, pods, replicas)
    rests = world.api.read(link.name)
    before, answer = world.service, essence(world.facts(rests))
    world.pods, world.replicas = later, later_replicas
    # While no pod is Ready, the end of a reconnect window is not worth the wait for a pod that is merely back.
    in_window = rests.status.reason == Reason.NO_READY_POD and world.redis.record().in_window
    if essence(world.facts(rests)) != answer and not in_window:
        assert world.registry.concerned(before, world.service) == {rests.key}
    if rests.status.phase in TERMINAL:
        assert world.registry.concerned(before, world.service) == set()
