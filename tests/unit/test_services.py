"""Who may speak for a service, and when one of its pods is there, missing for the moment, or gone for good."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlink.domain.services import ServiceView, view_service
from podlink.domain.states import PodState, WorkloadState
from podlink.domain.workloads import Pod, Workload
from unit.builders import NOTHING, NS, SVC, lobby, make_pod, make_workload


def view(pods: list[Pod], workloads: list[Workload]) -> ServiceView:
    return view_service(NS, SVC, pods, workloads)


OLD = make_workload(3, name="old", uid="old", created="2024-01-01T00:00:00Z")


def young(replicas: int = 3, **fields: object) -> Workload:
    return make_workload(replicas, **({"name": "young", "uid": "young", "created": "2024-01-02T00:00:00Z"} | fields))


@pytest.mark.parametrize(
    ("rival", "accepted"),
    [
        pytest.param(young(3), False, id="the same ids"),
        pytest.param(young(1), False, id="some of the ids"),
        pytest.param(young(1, first_id=2), False, id="the last id"),
        pytest.param(young(9, first_id=1), False, id="more ids"),
        pytest.param(young(2, first_id=3), True, id="the ids that follow"),
        pytest.param(young(2, first_id=10), True, id="other ids"),
        pytest.param(young(0), True, id="no ids"),
        pytest.param(young(0, first_id=1), True, id="no ids, in the midst of the others"),
        pytest.param(young(3, terminating=True), True, id="none any more, because it is deleted"),
    ],
)
def test_younger_workload_with(rival: Workload, *, accepted: bool) -> None:
    found = view([make_pod(1, name="old-1", owner="old"), make_pod(7, name="young-7", owner="young")], [rival, OLD])
    assert found.workloads[0] == OLD, "the older one keeps the service"
    if accepted:
        assert (found.workloads, found.rejected) == ((OLD, rival), ())
        assert set(found.pods) == {1, 7}
    else:
        assert (found.workloads, found.rejected) == ((OLD,), ((rival, OLD),))
        assert set(found.pods) == {1}, "the younger one is left out whole, with its pods"


def test_older_workload_that_is_deleted_gives_way() -> None:
    leaving = make_workload(3, name="old", uid="old", terminating=True)
    assert view([], [leaving, young()]).rejected == ()


def test_workloads_of_one_second_are_told_apart_by_uid() -> None:
    one, other = make_workload(uid="a"), make_workload(uid="b")
    assert view([], [one, other]).rejected == ((other, one),)
    assert view([], [other, one]).rejected == ((other, one),)


def test_workload_that_is_left_out_stands_in_nobodys_way() -> None:
    middle = young(4, first_id=2)
    youngest = make_workload(2, name="third", uid="third", created="2024-01-03T00:00:00Z", first_id=4)
    found = view([], [youngest, middle, OLD])
    assert found.workloads == (OLD, youngest)
    assert found.rejected == ((middle, OLD),)


@pytest.mark.parametrize(
    ("one", "other", "winner"),
    [
        (make_pod(1, name="a"), make_pod(1, name="b", owner=None), "a"),
        (make_pod(1, PodState.TERMINATING, name="a"), make_pod(1, name="b", owner=None), "a"),
        (make_pod(1, PodState.TERMINATING, name="a"), make_pod(1, PodState.PENDING, name="b"), "b"),
        (make_pod(1, PodState.FAILED, name="a"), make_pod(1, PodState.TERMINATING, name="b"), "a"),
        (make_pod(1, name="a"), make_pod(1, name="b"), "a"),
    ],
    ids=[
        "a StatefulSet's pod",
        "a StatefulSet's pod that leaves",
        "the one that stays",
        "one that failed",
        "the first uid",
    ],
)
def test_two_pods_with_one_id(one: Pod, other: Pod, winner: str) -> None:
    for pods in ([one, other], [other, one]):
        assert view(pods, [make_workload()]).pods[1].name == winner


def test_pods_without_a_workload_make_a_service() -> None:
    found = view([make_pod(4, owner=None), make_pod(5, owner="unknown")], [])
    assert found.exists
    assert found.ready == [4, 5]
    assert found.state is None


def test_nothing_makes_no_service() -> None:
    assert not NOTHING.exists
    assert NOTHING.ready == []
    assert NOTHING.state is None
    assert NOTHING.lost(0)


def test_workload_without_pods_makes_a_service() -> None:
    assert lobby(ready=()).exists
    assert lobby(ready=(), replicas=0).exists


def test_state_is_that_of_the_accepted_workloads() -> None:
    assert view([], [OLD, young(ready_replicas=0, progressing=True)]).state is WorkloadState.AVAILABLE
    assert view([], [OLD, young(2, first_id=3, ready_replicas=0)]).state is WorkloadState.DEGRADED


def test_only_ready_pods_are_picked_from() -> None:
    states = dict(enumerate(PodState))
    found = lobby(ready=(), others=states)
    assert [states[pod_id] for pod_id in found.ready] == [PodState.READY]


def test_ready_pods_ascend() -> None:
    assert lobby(ready=[10, 2, 0]).ready == [0, 2, 10]


HERE, BACK_SOON, LEAVING, LOST = "here", "back soon", "leaving", "lost"


@pytest.mark.parametrize(
    ("service", "fate"),
    [
        *(pytest.param(lobby((), {1: state}), HERE, id=f"{state}, expected") for state in PodState),
        *(
            pytest.param(lobby((), {1: state}, replicas=0), HERE, id=f"{state}, not expected")
            for state in PodState
            if state is not PodState.TERMINATING
        ),
        pytest.param(lobby((), {1: PodState.TERMINATING}, replicas=1), LEAVING, id="Terminating, not expected"),
        pytest.param(lobby((), {1: PodState.TERMINATING}, replicas=None), LEAVING, id="Terminating, no StatefulSet"),
        pytest.param(lobby([0]), BACK_SOON, id="absent, expected"),
        pytest.param(lobby([0], replicas=1), LOST, id="absent, not expected"),
        pytest.param(lobby([0], replicas=None), LOST, id="absent, no StatefulSet"),
        pytest.param(view([], [make_workload(terminating=True)]), LOST, id="absent, StatefulSet deleted"),
        pytest.param(view([], [make_workload(first_id=1)]), BACK_SOON, id="absent, first of its ordinals"),
        pytest.param(view([], [make_workload(first_id=2)]), LOST, id="absent, before the first ordinal"),
        pytest.param(view([], [OLD, young(9)]), BACK_SOON, id="absent, expected by the older one"),
        pytest.param(view([], [make_workload(1), young(9)]), LOST, id="absent, expected by one left out"),
    ],
)
def test_fate_of_pod_1(service: ServiceView, fate: str) -> None:
    assert service.has(1) is (fate == HERE)
    assert service.lost(1) is (fate == LOST)
    assert service.expects(1) or fate != BACK_SOON


@pytest.mark.parametrize(
    ("service", "name"),
    [
        pytest.param(view([make_pod(1, name="odd")], [make_workload()]), "odd", id="its own"),
        pytest.param(view([], [make_workload(name="web")]), "web-1", id="its StatefulSet's, while it is away"),
        pytest.param(
            view([], [make_workload(1, name="web"), young(2, first_id=1)]), "young-1", id="of two StatefulSets"
        ),
        pytest.param(NOTHING, "lobby-1", id="its service's, when nothing is left"),
    ],
)
def test_pod_name(service: ServiceView, name: str) -> None:
    assert service.pod_name(1) == name


WORKLOADS = st.lists(
    st.builds(
        make_workload,
        st.integers(0, 4),
        uid=st.sampled_from(["u1", "u2", "u3", "u4"]),
        created=st.sampled_from(["2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z"]),
        first_id=st.integers(0, 6),
        terminating=st.booleans(),
    ),
    unique_by=lambda workload: workload.uid,
)
PODS = st.lists(
    st.builds(
        make_pod,
        st.integers(0, 4),
        st.sampled_from(PodState),
        uid=st.uuids().map(str),
        owner=st.sampled_from([None, "u1", "u2", "u3", "gone"]),
    ),
    unique_by=lambda pod: pod.uid,
)


@given(pods=PODS, workloads=WORKLOADS, data=st.data())
def test_picture_does_not_depend_on_the_order(pods: list[Pod], workloads: list[Workload], data: st.DataObject) -> None:
    shuffled = view(data.draw(st.permutations(pods)), data.draw(st.permutations(workloads)))
    assert shuffled == view(pods, workloads)


@given(pods=PODS, workloads=WORKLOADS)
def test_nobody_speaks_for_an_id_of_an_older_workload(pods: list[Pod], workloads: list[Workload]) -> None:
    found = view(pods, workloads)
    for one, other in combinations(found.workloads, 2):
        assert not set(one.ids) & set(other.ids)
        assert (one.created, one.uid) < (other.created, other.uid)
    for left_out, older in found.rejected:
        assert set(left_out.ids) & set(older.ids)
        assert (older.created, older.uid) < (left_out.created, left_out.uid)
        assert older in found.workloads
        assert all(pod.owner != left_out.uid for pod in found.pods.values())
    assert {w.uid for w in workloads} == {w.uid for w in found.workloads} | {w.uid for w, _ in found.rejected}
