"""PodLinks as they come from the API server and go back to it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlink.domain.podlinks import (
    FINALIZER,
    Condition,
    InvalidPodLinkError,
    OnPodLoss,
    Phase,
    PodLink,
    Policy,
    Reason,
    Spec,
    Status,
    read_podlink,
)
from unit.builders import linked, podlink, reported

MINIMAL: dict[str, Any] = {
    "metadata": {
        "namespace": "games",
        "name": "my-link",
        "uid": "object-uid",
        "resourceVersion": "4711",
        "generation": 2,
        "creationTimestamp": "2024-02-01T00:00:00Z",
    },
    "spec": {"uid": "player-42", "service": "lobby"},
}


def body(*, metadata: dict[str, Any] | None = None, **parts: Any) -> dict[str, Any]:
    return MINIMAL | {"metadata": MINIMAL["metadata"] | (metadata or {})} | parts


def test_defaults_are_those_of_the_crd() -> None:
    spec = read_podlink(MINIMAL).spec
    assert spec == Spec("player-42", "lobby", None, Policy.TRY_SET, -1, 0, OnPodLoss.KEEP)
    assert not spec.temporary


def test_everything_that_is_read() -> None:
    spec = {
        "uid": "player-42",
        "service": "lobby",
        "podId": 0,
        "policy": "IfAbsent",
        "persistSeconds": 60,
        "releaseSeconds": 5,
        "onPodLoss": "Release",
    }
    link = read_podlink(body(metadata={"finalizers": ["other", FINALIZER]}, spec=spec))
    assert link.spec == Spec("player-42", "lobby", 0, Policy.IF_ABSENT, 60, 5, OnPodLoss.RELEASE)
    assert link.spec.temporary
    assert link.key == ("games", "my-link")
    assert link.link_key == ("games", "player-42", "lobby")
    assert (link.uid, link.version, link.generation) == ("object-uid", 4711, 2)
    assert link.finalizers == ("other", FINALIZER)
    assert link.has_finalizer
    assert not link.deleting
    assert link.status == Status()


@pytest.mark.parametrize("status", [{}, {"status": None}, {"status": {}}], ids=["missing", "null", "empty"])
@pytest.mark.parametrize("finalizers", [{}, {"finalizers": None}, {"finalizers": []}], ids=["missing", "null", "none"])
def test_new_object(status: dict[str, Any], finalizers: dict[str, Any]) -> None:
    link = read_podlink(body(metadata=finalizers, **status))
    assert not link.has_finalizer
    assert link.edited
    assert not link.settled
    assert link.status.ready == Condition()
    assert link.status.reason == ""


def test_deleted_object() -> None:
    assert read_podlink(body(metadata={"deletionTimestamp": "2024-05-01T12:00:00Z"})).deleting
    assert not read_podlink(body(metadata={"deletionTimestamp": None})).deleting


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"service": "lobby"}, "uid"),
        ({"uid": "player-42"}, "service"),
        ({"uid": "player-42", "service": "lobby", "podId": "1"}, "podId"),
        ({"uid": "player-42", "service": "lobby", "policy": "Force"}, "policy"),
        ({"uid": "player-42", "service": "lobby", "persistSeconds": 1.5}, "persistSeconds"),
        ({"uid": "player-42", "service": "lobby", "onPodLoss": None}, "onPodLoss"),
        (None, "uid"),
    ],
    ids=["no uid", "no service", "podId", "policy", "persistSeconds", "onPodLoss", "no spec"],
)
def test_object_that_the_crd_would_refuse_is_told_of_by_field(spec: dict[str, Any] | None, field: str) -> None:
    with pytest.raises(InvalidPodLinkError, match=rf"{field}.*; apply it again with that field corrected"):
        read_podlink(body(spec=spec))


def test_fields_of_a_later_version_are_ignored() -> None:
    spec = MINIMAL["spec"] | {"weight": 3}
    assert read_podlink(body(spec=spec, status={"phase": "Linked", "weight": 3})).status.phase is Phase.LINKED


EXPIRED = reported(Phase.EXPIRED, Reason.EXPIRED)
RELEASED = reported(Phase.RELEASED, Reason.POD_LOST)


@pytest.mark.parametrize(
    ("link", "edited", "settled"),
    [
        pytest.param(podlink(), True, False, id="new"),
        pytest.param(podlink(1, status=linked(1)), False, False, id="linked"),
        pytest.param(podlink(1, status=linked(1), edited=True), True, False, id="linked and edited"),
        pytest.param(podlink(1, status=EXPIRED), False, True, id="expired"),
        pytest.param(podlink(1, status=EXPIRED, edited=True), True, False, id="expired and edited"),
        pytest.param(podlink(1, status=RELEASED), False, True, id="released"),
        pytest.param(podlink(1, status=reported(Phase.CONFLICT, Reason.DUPLICATE)), False, False, id="in conflict"),
        # The API server counts the start of a deletion as a change of the spec, which it is not.
        pytest.param(podlink(1, status=linked(1), deleting=True), False, False, id="linked and deleted"),
        pytest.param(podlink(1, status=EXPIRED, deleting=True), False, True, id="expired and deleted"),
        pytest.param(podlink(1, status=EXPIRED, deleting=True, edited=True), True, False, id="edited, then deleted"),
        pytest.param(podlink(1, deleting=True), True, False, id="deleted before the first report"),
    ],
)
def test_edits_and_ends(link: PodLink, *, edited: bool, settled: bool) -> None:
    assert (link.edited, link.settled) == (edited, settled)


def test_older_is_who_was_created_first_and_uids_decide_within_a_second() -> None:
    first = podlink(created="2024-01-01T00:00:09Z", uid="z")
    second = podlink(created="2024-01-01T00:00:10Z", uid="b")
    same_second = podlink(created="2024-01-01T00:00:10Z", uid="c")
    assert first.age_key < second.age_key < same_second.age_key


def test_status_without_a_value_is_null_so_that_a_merge_patch_removes_it() -> None:
    assert Status().to_json() == {
        "phase": None,
        "podId": None,
        "podName": None,
        "previousPodId": None,
        "owned": None,
        "linkedAt": None,
        "expiresAt": None,
        "observedGeneration": None,
        "conditions": (),
    }


def test_times_are_those_that_kubernetes_takes() -> None:
    east = timezone(timedelta(hours=2))
    moment = datetime(2024, 5, 1, 14, 0, 0, 999_999, tzinfo=east)
    condition = Condition("Ready", "True", "Linked", "fine", moment, 3)
    encoded = Status(phase=Phase.LINKED, linked_at=moment, expires_at=moment, conditions=(condition,)).to_json()
    assert encoded["linkedAt"] == encoded["expiresAt"] == "2024-05-01T12:00:00Z"
    (encoded_condition,) = encoded["conditions"]
    assert encoded_condition == {
        "type": "Ready",
        "status": "True",
        "reason": "Linked",
        "message": "fine",
        "lastTransitionTime": "2024-05-01T12:00:00Z",
        "observedGeneration": 3,
    }


def test_pod_id_0_is_a_value() -> None:
    encoded = Status(pod_id=0, previous_pod_id=0, owned=False).to_json()
    assert (encoded["podId"], encoded["previousPodId"], encoded["owned"]) == (0, 0, False)


def test_condition_ready_among_others() -> None:
    ready = Condition("Ready", "False", "PodLost")
    status = Status(conditions=(Condition("Synced", "True", "Fine"), ready))
    assert status.ready == ready
    assert status.reason == "PodLost"


MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)).map(  # noqa: DTZ001
    lambda moment: moment.replace(microsecond=0)
)
STATUSES = st.builds(
    Status,
    phase=st.sampled_from(Phase),
    pod_id=st.none() | st.integers(0, 2**31 - 1),
    pod_name=st.none() | st.text(),
    previous_pod_id=st.none() | st.integers(0, 2**31 - 1),
    owned=st.none() | st.booleans(),
    linked_at=st.none() | MOMENTS,
    expires_at=st.none() | MOMENTS,
    observed_generation=st.none() | st.integers(1),
    conditions=st.lists(
        st.builds(
            Condition,
            status=st.sampled_from(["True", "False", "Unknown"]),
            reason=st.sampled_from(Reason).map(str),
            message=st.text(),
            last_transition_time=MOMENTS,
            observed_generation=st.integers(1),
        ),
        max_size=1,
    ).map(tuple),
)


@given(STATUSES)
def test_status_comes_back_as_it_was_sent(status: Status) -> None:
    sent = json.loads(json.dumps(status.to_json()))
    stored = {name: value for name, value in sent.items() if value is not None}
    assert read_podlink(body(status=stored)).status == status


@given(STATUSES, STATUSES)
def test_status_is_replaced_whole_by_a_merge_patch(before: Status, after: Status) -> None:
    stored = {name: value for name, value in (before.to_json() | after.to_json()).items() if value is not None}
    assert read_podlink(body(status=stored)).status == after
