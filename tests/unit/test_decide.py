"""The rules about PodLinks, each as the facts it rests on and what follows: one row a rule."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import pytest

from podlink.domain.decide import (
    Action,
    Decision,
    Facts,
    Intend,
    LinkRecord,
    PickPod,
    ReleaseLink,
    SetLink,
    Write,
    decide,
    interests,
    redis_unavailable,
)
from podlink.domain.podlinks import OnPodLoss, Phase, PodLink, Policy, Reason, Status
from podlink.domain.services import view_service
from podlink.domain.states import PodState
from unit.builders import (
    ANNOUNCED,
    EARLIER,
    NEW,
    NO_LINK,
    NOTHING,
    NOW,
    adopted,
    facts,
    linked,
    lobby,
    permanent,
    podlink,
    reported,
    temporary,
    unlisted,
    window,
    with_status,
)

if TYPE_CHECKING:
    from podlink.domain.services import ServiceView

TRY, SET, ABSENT = Policy.TRY_SET, Policy.SET, Policy.IF_ABSENT
KEEP, RELINK, RELEASE = OnPodLoss.KEEP, OnPodLoss.RELINK, OnPodLoss.RELEASE


def older(pod_id: int | None, policy: Policy = TRY) -> PodLink:
    """Another PodLink for the same uid and service, which holds the link."""
    return podlink(pod_id, policy, name="older")


Report = tuple[Phase, Reason, int | None, bool | None]
"""Phase, reason, podId and `owned`."""

Said = Action | Report | Literal["announce", "let go"]


def said(decision: Decision) -> Said:
    if decision.finalize:
        return "let go"
    if isinstance(decision.action, Intend):
        return "announce"
    if decision.action is not None:
        return decision.action
    status = decision.status
    assert status is not None
    assert status.phase is not None
    return status.phase, Reason(status.reason), status.pod_id, status.owned


def is_linked(pod_id: int, reason: Reason = Reason.ALREADY_LINKED) -> Report:
    return Phase.LINKED, reason, pod_id, True


def is_adopted(pod_id: int, reason: Reason = Reason.ALREADY_LINKED) -> Report:
    return Phase.LINKED, reason, pod_id, False


def waits(reason: Reason, pod_id: int | None = None) -> Report:
    return Phase.PENDING, reason, pod_id, None if pod_id is None else True


def try_set(pod_id: int, expected: int | None = None, seconds: int = -1) -> SetLink:
    return SetLink(Write.TRY_SET, pod_id, seconds, expected)


def overwrite(pod_id: int, seconds: int = -1) -> SetLink:
    return SetLink(Write.SET, pod_id, seconds)


def set_if_absent(pod_id: int, seconds: int = -1) -> SetLink:
    return SetLink(Write.IF_ABSENT, pod_id, seconds)


HELD: Report = (Phase.CONFLICT, Reason.HELD_BY_ANOTHER_POD, None, None)
DUPLICATE: Report = (Phase.CONFLICT, Reason.DUPLICATE, None, None)
EXPIRED: Report = (Phase.EXPIRED, Reason.EXPIRED, None, None)
RELEASED: Report = (Phase.RELEASED, Reason.POD_LOST, None, None)
PICK = PickPod(-1)

RECORDS = {
    "no link": NO_LINK,
    "a permanent link to pod 1": permanent(1),
    "a temporary link to pod 1": temporary(1),
    "a link to pod 1 in its reconnect window": window(1),
    "an unlisted permanent link to pod 1": unlisted(1),
    "a permanent link to pod 2": permanent(2),
    "a temporary link to pod 2": temporary(2),
    "a link to pod 2 in its reconnect window": window(2),
    "an unlisted permanent link to pod 2": unlisted(2),
}


EVERY_FACTS: dict[str, Facts] = {}
"""Of all the tables below."""


def table(cases: dict[str, tuple[Facts, Said]]) -> pytest.MarkDecorator:
    EVERY_FACTS.update({name: given for name, (given, _) in cases.items()})
    return pytest.mark.parametrize(("given", "expected"), list(cases.values()), ids=list(cases))


def rows(title: str, link: PodLink, table: dict[str, Said]) -> list[Any]:
    assert list(table) == list(RECORDS), "every record has its row"
    cases = {f"{title}, Redis has {name}": facts(link, record) for name, record in RECORDS.items()}
    EVERY_FACTS.update(cases)
    return [
        pytest.param(given, expected, id=name)
        for (name, given), expected in zip(cases.items(), table.values(), strict=True)
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        *rows(
            "TrySet to pod 1 is new",
            podlink(1, TRY),
            {
                "no link": try_set(1),
                "a permanent link to pod 1": is_linked(1),
                "a temporary link to pod 1": try_set(1),
                "a link to pod 1 in its reconnect window": try_set(1),
                "an unlisted permanent link to pod 1": try_set(1),
                "a permanent link to pod 2": HELD,
                "a temporary link to pod 2": try_set(1),
                "a link to pod 2 in its reconnect window": try_set(1),
                "an unlisted permanent link to pod 2": HELD,
            },
        ),
        *rows(
            "Set to pod 1 is new",
            podlink(1, SET),
            {
                "no link": overwrite(1),
                "a permanent link to pod 1": is_linked(1),
                "a temporary link to pod 1": overwrite(1),
                "a link to pod 1 in its reconnect window": overwrite(1),
                "an unlisted permanent link to pod 1": overwrite(1),
                "a permanent link to pod 2": overwrite(1),
                "a temporary link to pod 2": overwrite(1),
                "a link to pod 2 in its reconnect window": overwrite(1),
                "an unlisted permanent link to pod 2": overwrite(1),
            },
        ),
        *rows(
            "IfAbsent to pod 1 is new",
            podlink(1, ABSENT),
            {
                "no link": "announce",
                "a permanent link to pod 1": is_adopted(1),
                "a temporary link to pod 1": is_adopted(1),
                "a link to pod 1 in its reconnect window": is_adopted(1),
                "an unlisted permanent link to pod 1": is_adopted(1),
                "a permanent link to pod 2": is_adopted(2),
                "a temporary link to pod 2": is_adopted(2),
                "a link to pod 2 in its reconnect window": is_adopted(2),
                "an unlisted permanent link to pod 2": is_adopted(2),
            },
        ),
        *rows(
            "TrySet to any pod is new",
            podlink(None, TRY),
            {
                "no link": PICK,
                "a permanent link to pod 1": is_linked(1),
                "a temporary link to pod 1": try_set(1, expected=1),
                "a link to pod 1 in its reconnect window": try_set(1, expected=1),
                "an unlisted permanent link to pod 1": try_set(1, expected=1),
                "a permanent link to pod 2": is_linked(2),
                "a temporary link to pod 2": try_set(2, expected=2),
                "a link to pod 2 in its reconnect window": try_set(2, expected=2),
                "an unlisted permanent link to pod 2": try_set(2, expected=2),
            },
        ),
        *rows(
            "Set to any pod is new",
            podlink(None, SET),
            {
                "no link": PICK,
                "a permanent link to pod 1": is_linked(1),
                "a temporary link to pod 1": overwrite(1),
                "a link to pod 1 in its reconnect window": try_set(1, expected=1),
                "an unlisted permanent link to pod 1": overwrite(1),
                "a permanent link to pod 2": is_linked(2),
                "a temporary link to pod 2": overwrite(2),
                "a link to pod 2 in its reconnect window": try_set(2, expected=2),
                "an unlisted permanent link to pod 2": overwrite(2),
            },
        ),
        *rows(
            "IfAbsent to any pod is new",
            podlink(None, ABSENT),
            {
                "no link": "announce",
                "a permanent link to pod 1": is_adopted(1),
                "a temporary link to pod 1": is_adopted(1),
                "a link to pod 1 in its reconnect window": is_adopted(1),
                "an unlisted permanent link to pod 1": is_adopted(1),
                "a permanent link to pod 2": is_adopted(2),
                "a temporary link to pod 2": is_adopted(2),
                "a link to pod 2 in its reconnect window": is_adopted(2),
                "an unlisted permanent link to pod 2": is_adopted(2),
            },
        ),
    ],
)
def test_new_podlink(given: Facts, expected: Said) -> None:
    assert said(decide(given)) == expected


LINKED_TO_1 = is_linked(1, Reason.LINKED)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        *rows(
            "TrySet is linked to its pod 1",
            podlink(1, TRY, linked(1)),
            {
                "no link": try_set(1, expected=1),
                "a permanent link to pod 1": LINKED_TO_1,
                "a temporary link to pod 1": try_set(1, expected=1),
                "a link to pod 1 in its reconnect window": try_set(1, expected=1),
                "an unlisted permanent link to pod 1": try_set(1, expected=1),
                "a permanent link to pod 2": HELD,
                "a temporary link to pod 2": try_set(1, expected=1),
                "a link to pod 2 in its reconnect window": try_set(1, expected=1),
                "an unlisted permanent link to pod 2": HELD,
            },
        ),
        *rows(
            "Set is linked to its pod 1",
            podlink(1, SET, linked(1)),
            {
                "no link": overwrite(1),
                "a permanent link to pod 1": LINKED_TO_1,
                "a temporary link to pod 1": overwrite(1),
                "a link to pod 1 in its reconnect window": overwrite(1),
                "an unlisted permanent link to pod 1": overwrite(1),
                "a permanent link to pod 2": overwrite(1),
                "a temporary link to pod 2": overwrite(1),
                "a link to pod 2 in its reconnect window": overwrite(1),
                "an unlisted permanent link to pod 2": overwrite(1),
            },
        ),
        *rows(
            "IfAbsent is linked to its pod 1",
            podlink(1, ABSENT, linked(1)),
            {
                "no link": set_if_absent(1),
                "a permanent link to pod 1": LINKED_TO_1,
                "a temporary link to pod 1": try_set(1, expected=1),
                "a link to pod 1 in its reconnect window": try_set(1, expected=1),
                "an unlisted permanent link to pod 1": try_set(1, expected=1),
                "a permanent link to pod 2": is_adopted(2),
                "a temporary link to pod 2": is_adopted(2),
                "a link to pod 2 in its reconnect window": is_adopted(2),
                "an unlisted permanent link to pod 2": is_adopted(2),
            },
        ),
        *rows(
            # A permanent link of somebody else is as good as the one that was picked; a temporary one is not.
            "TrySet is linked to pod 1, any would do",
            podlink(None, TRY, linked(1)),
            {
                "no link": try_set(1, expected=1),
                "a permanent link to pod 1": LINKED_TO_1,
                "a temporary link to pod 1": try_set(1, expected=1),
                "a link to pod 1 in its reconnect window": try_set(1, expected=1),
                "an unlisted permanent link to pod 1": try_set(1, expected=1),
                "a permanent link to pod 2": is_linked(2),
                "a temporary link to pod 2": try_set(1, expected=1),
                "a link to pod 2 in its reconnect window": try_set(1, expected=1),
                "an unlisted permanent link to pod 2": try_set(2, expected=2),
            },
        ),
        *rows(
            "Set is linked to pod 1, any would do",
            podlink(None, SET, linked(1)),
            {
                "no link": overwrite(1),
                "a permanent link to pod 1": LINKED_TO_1,
                "a temporary link to pod 1": overwrite(1),
                "a link to pod 1 in its reconnect window": overwrite(1),
                "an unlisted permanent link to pod 1": overwrite(1),
                "a permanent link to pod 2": overwrite(1),
                "a temporary link to pod 2": overwrite(1),
                "a link to pod 2 in its reconnect window": overwrite(1),
                "an unlisted permanent link to pod 2": overwrite(1),
            },
        ),
        *rows(
            "IfAbsent is linked to pod 1, any would do",
            podlink(None, ABSENT, linked(1)),
            {
                "no link": set_if_absent(1),
                "a permanent link to pod 1": LINKED_TO_1,
                "a temporary link to pod 1": try_set(1, expected=1),
                "a link to pod 1 in its reconnect window": try_set(1, expected=1),
                "an unlisted permanent link to pod 1": try_set(1, expected=1),
                "a permanent link to pod 2": is_adopted(2),
                "a temporary link to pod 2": is_adopted(2),
                "a link to pod 2 in its reconnect window": is_adopted(2),
                "an unlisted permanent link to pod 2": is_adopted(2),
            },
        ),
    ],
)
def test_link_that_drifted(given: Facts, expected: Said) -> None:
    assert said(decide(given)) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        *rows(
            "IfAbsent announced that it will link pod 1",
            podlink(1, ABSENT, ANNOUNCED),
            {
                "no link": set_if_absent(1),
                "a permanent link to pod 1": is_linked(1),
                "a temporary link to pod 1": try_set(1, expected=1),
                "a link to pod 1 in its reconnect window": is_adopted(1),
                "an unlisted permanent link to pod 1": is_adopted(1),
                "a permanent link to pod 2": is_adopted(2),
                "a temporary link to pod 2": is_adopted(2),
                "a link to pod 2 in its reconnect window": is_adopted(2),
                "an unlisted permanent link to pod 2": is_adopted(2),
            },
        ),
        *rows(
            "IfAbsent announced that it will link some pod",
            podlink(None, ABSENT, ANNOUNCED),
            {
                "no link": PICK,
                "a permanent link to pod 1": is_linked(1),
                "a temporary link to pod 1": try_set(1, expected=1),
                "a link to pod 1 in its reconnect window": is_adopted(1),
                "an unlisted permanent link to pod 1": is_adopted(1),
                "a permanent link to pod 2": is_linked(2),
                "a temporary link to pod 2": try_set(2, expected=2),
                "a link to pod 2 in its reconnect window": is_adopted(2),
                "an unlisted permanent link to pod 2": is_adopted(2),
            },
        ),
        *rows(
            "IfAbsent adopted a link to pod 1",
            podlink(None, ABSENT, adopted(1)),
            {
                "no link": "announce",
                "a permanent link to pod 1": is_adopted(1),
                "a temporary link to pod 1": is_adopted(1),
                "a link to pod 1 in its reconnect window": is_adopted(1),
                "an unlisted permanent link to pod 1": is_adopted(1),
                "a permanent link to pod 2": is_adopted(2),
                "a temporary link to pod 2": is_adopted(2),
                "a link to pod 2 in its reconnect window": is_adopted(2),
                "an unlisted permanent link to pod 2": is_adopted(2),
            },
        ),
    ],
)
def test_ownership_under_if_absent(given: Facts, expected: Said) -> None:
    assert said(decide(given)) == expected


@pytest.mark.parametrize(
    "status",
    [
        pytest.param(NEW, id="nothing was reported"),
        pytest.param(adopted(0, left=-3), id="a link was adopted and expired"),
        pytest.param(reported(Phase.EXPIRED, Reason.EXPIRED), id="an earlier link expired"),
        pytest.param(reported(Phase.CONFLICT, Reason.DUPLICATE), id="another PodLink was older"),
    ],
)
@pytest.mark.parametrize("pod_id", [None, 0])
def test_if_absent_announces_once_and_then_sets_a_link_of_its_own(status: Status, pod_id: int | None) -> None:
    link = podlink(pod_id, ABSENT, status, persist=60, edited=True)
    announcement = decide(facts(link)).action
    assert isinstance(announcement, Intend)
    assert announcement.status.owned
    assert announcement.status.observed_generation == status.observed_generation, "nothing has been done yet"
    announced = with_status(link, announcement.status)
    assert decide(facts(announced)).action == (PickPod(60) if pod_id is None else set_if_absent(0, 60))
    assert said(decide(facts(announced, temporary(0), acted=True))) == is_linked(0, Reason.LINKED)


SERVICES = {
    "nothing of the service is there": NOTHING,
    "the StatefulSet has no pods yet": lobby(ready=()),
    "pod 1 is not there yet": lobby(ready=[0]),
    "the service has no pod 1": lobby(ready=[0], replicas=1),
    "pod 1 is not ready": lobby(ready=[0], others={1: PodState.NOT_READY}),
    "pod 1 is draining": lobby(ready=[0], others={1: PodState.DRAINING}),
    "pod 1 failed": lobby(ready=[0], others={1: PodState.FAILED}),
    "pod 1 is restarted": lobby(ready=[0], others={1: PodState.TERMINATING}),
    "pod 1 is scaled away": lobby(ready=[0], others={1: PodState.TERMINATING}, replicas=1),
    "pod 1 is a bare pod": lobby(ready=[0, 1], replicas=None),
}


def on_services(title: str, link: PodLink, record: LinkRecord, table: dict[str, Said]) -> list[Any]:
    assert list(table) == list(SERVICES), "every service has its row"
    cases = {f"{title}; {name}": facts(link, record, service) for name, service in SERVICES.items()}
    EVERY_FACTS.update(cases)
    return [
        pytest.param(given, expected, id=name)
        for (name, given), expected in zip(cases.items(), table.values(), strict=True)
    ]


NO_SERVICE, NOT_FOUND, NOT_READY = (
    waits(Reason.WAITING_FOR_SERVICE),
    waits(Reason.POD_NOT_FOUND),
    waits(Reason.NO_READY_POD),
)
POD_LOST = (Phase.LINKED, Reason.POD_LOST, 1, True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        *on_services(
            "TrySet to pod 1 is new",
            podlink(1),
            NO_LINK,
            {
                "nothing of the service is there": NO_SERVICE,
                "the StatefulSet has no pods yet": NOT_FOUND,
                "pod 1 is not there yet": NOT_FOUND,
                "the service has no pod 1": NOT_FOUND,
                "pod 1 is not ready": try_set(1),
                "pod 1 is draining": try_set(1),
                "pod 1 failed": try_set(1),
                "pod 1 is restarted": try_set(1),
                "pod 1 is scaled away": NOT_FOUND,
                "pod 1 is a bare pod": try_set(1),
            },
        ),
        *on_services(
            "TrySet to any pod is new",
            podlink(None),
            NO_LINK,
            {
                "nothing of the service is there": NO_SERVICE,
                "the StatefulSet has no pods yet": NOT_READY,
                **dict.fromkeys(list(SERVICES)[2:], PICK),
            },
        ),
        *on_services(
            "the link to pod 1 is there",
            podlink(1, TRY, linked(1)),
            permanent(1),
            {
                "nothing of the service is there": POD_LOST,
                "the StatefulSet has no pods yet": LINKED_TO_1,
                "pod 1 is not there yet": LINKED_TO_1,
                "the service has no pod 1": POD_LOST,
                "pod 1 is not ready": LINKED_TO_1,
                "pod 1 is draining": LINKED_TO_1,
                "pod 1 failed": LINKED_TO_1,
                "pod 1 is restarted": LINKED_TO_1,
                "pod 1 is scaled away": LINKED_TO_1,
                "pod 1 is a bare pod": LINKED_TO_1,
            },
        ),
        *on_services(
            "Redis lost the link to pod 1",
            podlink(1, TRY, linked(1)),
            NO_LINK,
            {
                "nothing of the service is there": NO_SERVICE,
                "the StatefulSet has no pods yet": try_set(1, expected=1),
                "pod 1 is not there yet": try_set(1, expected=1),
                "the service has no pod 1": NOT_FOUND,
                "pod 1 is not ready": try_set(1, expected=1),
                "pod 1 is draining": try_set(1, expected=1),
                "pod 1 failed": try_set(1, expected=1),
                "pod 1 is restarted": try_set(1, expected=1),
                "pod 1 is scaled away": NOT_FOUND,
                "pod 1 is a bare pod": try_set(1, expected=1),
            },
        ),
        *on_services(
            "Redis lost the link to pod 1, any would do",
            podlink(None, TRY, linked(1)),
            NO_LINK,
            {
                "nothing of the service is there": NO_SERVICE,
                "the StatefulSet has no pods yet": try_set(1, expected=1),
                "pod 1 is not there yet": try_set(1, expected=1),
                "the service has no pod 1": PICK,
                "pod 1 is not ready": try_set(1, expected=1),
                "pod 1 is draining": try_set(1, expected=1),
                "pod 1 failed": try_set(1, expected=1),
                "pod 1 is restarted": try_set(1, expected=1),
                "pod 1 is scaled away": PICK,
                "pod 1 is a bare pod": try_set(1, expected=1),
            },
        ),
    ],
)
def test_pods_that_are_missing(given: Facts, expected: Said) -> None:
    assert said(decide(given)) == expected


@table(
    {
        "a pod that the StatefulSet does not expect is not linked under Set either": (
            facts(podlink(7, SET), permanent(2)),
            NOT_FOUND,
        ),
        "an announced link waits for its pod": (facts(podlink(7, ABSENT, ANNOUNCED)), NOT_FOUND),
        "somebody's link is adopted though its pod is gone": (
            facts(podlink(None, ABSENT), permanent(7)),
            is_adopted(7, Reason.POD_LOST),
        ),
        "a link in its reconnect window to a pod that is gone is given up for another pod": (
            facts(podlink(None), window(7)),
            PickPod(-1, instead_of=7),
        ),
        "a link in its reconnect window to a pod that is gone stays while no pod is Ready": (
            facts(podlink(None), window(7), lobby(ready=())),
            NOT_READY,
        ),
        "a pick that found no routable pod waits": (facts(podlink(None), acted=True), NOT_READY),
        "a link of somebody else is told of before a pod that is missing": (
            facts(podlink(7, TRY), permanent(2)),
            HELD,
        ),
        "a link of somebody else still wins while our pod restarts": (
            facts(podlink(1, TRY, linked(1)), permanent(2), lobby(ready=[0, 2])),
            HELD,
        ),
        "a link that was given up to somebody else stays given up while our pod restarts": (
            facts(podlink(1, TRY, reported(Phase.CONFLICT, Reason.HELD_BY_ANOTHER_POD)), permanent(2), lobby([0, 2])),
            HELD,
        ),
        "the link is taken over when somebody else releases it": (
            facts(podlink(1, TRY, reported(Phase.CONFLICT, Reason.HELD_BY_ANOTHER_POD)), NO_LINK),
            try_set(1),
        ),
        "the link is taken over when somebody else's is in its reconnect window": (
            facts(podlink(1, TRY, reported(Phase.CONFLICT, Reason.HELD_BY_ANOTHER_POD)), window(2)),
            try_set(1),
        ),
        "the link is set when the pod that was missing appears": (
            facts(podlink(1, TRY, reported(Phase.PENDING, Reason.POD_NOT_FOUND))),
            try_set(1),
        ),
    }
)
def test_waiting_and_conflicts(given: Facts, expected: Said) -> None:
    assert said(decide(given)) == expected


GONE = lobby(ready=[0], replicas=1)
"""Pod 1 was scaled away and is gone; pod 0 is Ready."""
GONE_AND_NO_OTHER = lobby(ready=(), replicas=1)


@table(
    {
        "Keep leaves the link": (facts(podlink(1, TRY, linked(1)), permanent(1), GONE), POD_LOST),
        "Keep has nothing to keep once the link is gone too": (
            facts(podlink(1, TRY, linked(1)), NO_LINK, GONE),
            NOT_FOUND,
        ),
        "a kept link is fine again when its pod is back": (
            facts(podlink(1, TRY, linked(1, reason=Reason.POD_LOST, ok=False)), permanent(1)),
            LINKED_TO_1,
        ),
        "Keep leaves a picked link": (facts(podlink(None, TRY, linked(1)), permanent(1), GONE), POD_LOST),
        "Release removes the link first": (
            facts(podlink(1, TRY, linked(1), loss=RELEASE), permanent(1), GONE),
            ReleaseLink(1, 0),
        ),
        "Release ends the reconnect window of a link to a lost pod": (
            facts(podlink(1, TRY, linked(1), loss=RELEASE), window(1), GONE),
            ReleaseLink(1, 0),
        ),
        "Release reports once the link is gone": (
            facts(podlink(1, TRY, linked(1), loss=RELEASE), NO_LINK, GONE, acted=True),
            RELEASED,
        ),
        "Release reports after a crash that came before the report": (
            facts(podlink(1, TRY, linked(1), loss=RELEASE), NO_LINK, GONE),
            RELEASED,
        ),
        "Release leaves the link that somebody else set instead": (
            facts(podlink(1, TRY, linked(1), loss=RELEASE), temporary(2), GONE),
            RELEASED,
        ),
        "Release takes a permanent link to a living pod for the declared one": (
            facts(podlink(None, TRY, linked(1), loss=RELEASE), permanent(0), GONE),
            is_linked(0),
        ),
        "Release waits until the pod is really gone": (
            facts(podlink(1, TRY, linked(1), loss=RELEASE), permanent(1), SERVICES["pod 1 is scaled away"]),
            LINKED_TO_1,
        ),
        "Release leaves a restarting pod's link": (
            facts(podlink(1, TRY, linked(1), loss=RELEASE), permanent(1), lobby(ready=[0])),
            LINKED_TO_1,
        ),
        "Release leaves an adopted link": (
            facts(podlink(1, ABSENT, adopted(1), loss=RELEASE), permanent(1), GONE),
            is_adopted(1, Reason.POD_LOST),
        ),
        "Release does not stop a move to a living pod": (
            facts(podlink(0, TRY, linked(1), loss=RELEASE, edited=True), permanent(1), GONE),
            try_set(0, expected=1),
        ),
        "IfAbsent announces the link that takes the place of one that is gone with its pod": (
            facts(podlink(None, ABSENT, linked(1)), NO_LINK, GONE),
            "announce",
        ),
        "a released PodLink stays released when the pod is back": (
            facts(podlink(1, TRY, reported(Phase.RELEASED, Reason.POD_LOST), loss=RELEASE)),
            RELEASED,
        ),
        "a released PodLink links again once it is edited": (
            facts(podlink(0, TRY, reported(Phase.RELEASED, Reason.POD_LOST), loss=RELEASE, edited=True)),
            try_set(0),
        ),
        "Relink picks another pod": (
            facts(podlink(None, TRY, linked(1), loss=RELINK), permanent(1), GONE),
            PickPod(-1, instead_of=1),
        ),
        "Relink under Set picks another pod": (
            facts(podlink(None, SET, linked(1), loss=RELINK), permanent(1), GONE),
            PickPod(-1, instead_of=1),
        ),
        "Relink gives a temporary link a whole lifetime at its new pod": (
            facts(podlink(None, TRY, linked(1, left=20), loss=RELINK, persist=60), temporary(1, 20), GONE),
            PickPod(60, instead_of=1),
        ),
        "Relink reports the new pod": (
            facts(podlink(None, TRY, linked(1), loss=RELINK), permanent(0), GONE, acted=True, replaced=1),
            is_linked(0, Reason.LINKED),
        ),
        "Relink reports the new pod after a crash that came before the report": (
            facts(podlink(None, TRY, linked(1), loss=RELINK), permanent(0), GONE),
            is_linked(0),
        ),
        "Relink waits when no pod was routable after all": (
            facts(podlink(None, TRY, linked(1), loss=RELINK), NO_LINK, GONE, acted=True, replaced=1),
            NOT_READY,
        ),
        "Relink keeps the link while no pod is Ready": (
            facts(podlink(None, TRY, linked(1), loss=RELINK), permanent(1), GONE_AND_NO_OTHER),
            POD_LOST,
        ),
        "Relink picks when a pod is Ready at last": (
            facts(podlink(None, TRY, linked(1, reason=Reason.POD_LOST, ok=False), loss=RELINK), permanent(1), GONE),
            PickPod(-1, instead_of=1),
        ),
        "Relink leaves the link when its pod is expected again": (
            facts(podlink(None, TRY, linked(1, reason=Reason.POD_LOST, ok=False), loss=RELINK), permanent(1), lobby()),
            LINKED_TO_1,
        ),
        "Relink under IfAbsent announces the new link first": (
            facts(podlink(None, ABSENT, linked(1), loss=RELINK), permanent(1), GONE),
            "announce",
        ),
        "Relink under IfAbsent picks once it is announced": (
            facts(podlink(None, ABSENT, ANNOUNCED, loss=RELINK), permanent(1), GONE),
            PickPod(-1, instead_of=1),
        ),
        "Relink under IfAbsent owns the new link": (
            facts(podlink(None, ABSENT, ANNOUNCED, loss=RELINK), permanent(0), GONE, acted=True, replaced=1),
            is_linked(0, Reason.LINKED),
        ),
        "Relink under IfAbsent leaves the link that somebody else set instead": (
            facts(podlink(None, ABSENT, linked(1), loss=RELINK), permanent(0), GONE),
            is_adopted(0),
        ),
    }
)
def test_pod_that_is_lost_for_good(given: Facts, expected: Said) -> None:
    assert said(decide(given)) == expected


def minute(left: float, policy: Policy = TRY, pod_id: int | None = 1, **fields: Any) -> PodLink:
    """A PodLink of a minute's lifetime, reported as linked to pod 1 with so many seconds left."""
    return podlink(pod_id, policy, linked(1, left=left), **({"persist": 60} | fields))


STALE_FIELD = LinkRecord(None, None, 1)
"""The field of an expired link, on a server that does not expire fields."""


@table(
    {
        "a new link gets its lifetime": (facts(podlink(1, persist=60)), try_set(1, seconds=60)),
        "a new link gets its lifetime where a link expired before": (
            facts(podlink(1, persist=60), STALE_FIELD),
            try_set(1, seconds=60),
        ),
        "a picked link gets its lifetime": (facts(podlink(None, persist=60)), PickPod(60)),
        "somebody's temporary link to the same pod is as declared": (
            facts(podlink(1, persist=60), temporary(1, 30)),
            is_linked(1),
        ),
        "a running link is left alone": (facts(minute(42), temporary(1, 41.5)), LINKED_TO_1),
        "a lost link is repaired for the time it had left": (
            facts(minute(42.3)),
            try_set(1, expected=1, seconds=43),
        ),
        "a lost link is repaired for the time it had left, under Set": (facts(minute(42.3, SET)), overwrite(1, 43)),
        "a lost link is repaired for the time it had left, under IfAbsent": (
            facts(minute(42.3, ABSENT)),
            set_if_absent(1, 43),
        ),
        "a lost link is repaired for the time it had left, whichever pod it was": (
            facts(minute(42.3, pod_id=None)),
            try_set(1, expected=1, seconds=43),
        ),
        "a lost link is repaired at another pod for the whole time if its own pod is gone too": (
            facts(minute(42, pod_id=None), NO_LINK, GONE),
            PickPod(60),
        ),
        "a link released by somebody else is repaired for the time it had left": (
            facts(minute(42), window(1, 5)),
            try_set(1, expected=1, seconds=42),
        ),
        "a link moved by somebody else is moved back for the time it had left": (
            facts(minute(42), temporary(2, 600)),
            try_set(1, expected=1, seconds=42),
        ),
        "a link made permanent by somebody else gets back the time it had left": (
            facts(minute(42), permanent(1)),
            try_set(1, expected=1, seconds=42),
        ),
        "a link made permanent by somebody else ends soon when its time is over": (
            facts(minute(-100), permanent(1)),
            try_set(1, expected=1, seconds=1),
        ),
        "a link extended by somebody else is left alone": (facts(minute(20), temporary(1, 300)), LINKED_TO_1),
        "a link extended by somebody else lives on after its time": (
            facts(minute(-5), temporary(1, 300)),
            LINKED_TO_1,
        ),
        "a link that is gone at its time expired": (facts(minute(-0.1)), EXPIRED),
        "a link that is gone a moment before its time expired": (facts(minute(1)), EXPIRED),
        "a link that is gone more than a moment before its time is repaired": (
            facts(minute(1.1)),
            try_set(1, expected=1, seconds=2),
        ),
        "a link whose field stayed behind expired": (facts(minute(-5), STALE_FIELD), EXPIRED),
        "a link expired though somebody else has one by now": (facts(minute(-5), permanent(2)), EXPIRED),
        "a link expired though its pod is gone too": (facts(minute(-5), NO_LINK, GONE), EXPIRED),
        "an expired link is not made again": (
            facts(podlink(1, TRY, reported(Phase.EXPIRED, Reason.EXPIRED), persist=60)),
            EXPIRED,
        ),
        "an expired link is made again once the PodLink is edited": (
            facts(podlink(1, TRY, reported(Phase.EXPIRED, Reason.EXPIRED), persist=60, edited=True)),
            try_set(1, seconds=60),
        ),
        "an edited lifetime starts now": (
            facts(minute(30, persist=600, edited=True), temporary(1, 30)),
            try_set(1, expected=1, seconds=600),
        ),
        "an edited lifetime starts now under IfAbsent": (
            facts(minute(30, ABSENT, persist=600, edited=True), temporary(1, 30)),
            try_set(1, expected=1, seconds=600),
        ),
        "a shortened lifetime starts now": (
            facts(minute(50, persist=5, edited=True), temporary(1, 50)),
            try_set(1, expected=1, seconds=5),
        ),
        "an edited lifetime revives a link that expired unnoticed": (
            facts(minute(-5, persist=600, edited=True)),
            try_set(1, expected=1, seconds=600),
        ),
        "an edited lifetime is written once": (
            facts(minute(30, persist=600, edited=True), temporary(1, 600), acted=True),
            LINKED_TO_1,
        ),
        "an edit of something else leaves the lifetime alone": (
            facts(minute(30, release=5, edited=True), temporary(1, 30)),
            LINKED_TO_1,
        ),
        "an edit of something else does not revive an expired link": (
            facts(minute(-5, release=5, edited=True)),
            EXPIRED,
        ),
        "a link edited to be permanent becomes permanent": (
            facts(minute(30, persist=-1, edited=True), temporary(1, 30)),
            try_set(1, expected=1),
        ),
        "a link edited to be permanent is made again if it expired unnoticed": (
            facts(minute(-5, persist=-1, edited=True)),
            try_set(1, expected=1),
        ),
        "a link edited to be temporary becomes temporary": (
            facts(podlink(1, TRY, linked(1), persist=60, edited=True), permanent(1)),
            try_set(1, expected=1, seconds=60),
        ),
        "a move gives the link a whole lifetime": (
            facts(minute(30, pod_id=2, edited=True), temporary(1, 30)),
            try_set(2, expected=1, seconds=60),
        ),
        "an adopted link that expired was not ours to expire": (
            facts(podlink(1, ABSENT, adopted(1, left=-3), persist=60)),
            "announce",
        ),
    }
)
def test_temporary_links(given: Facts, expected: Said) -> None:
    assert said(decide(given)) == expected


@table(
    {
        "our own link moves at once": (
            facts(podlink(2, TRY, linked(1), edited=True), permanent(1)),
            try_set(2, expected=1),
        ),
        "our own link moves at once under Set": (
            facts(podlink(2, SET, linked(1), edited=True), permanent(1)),
            overwrite(2),
        ),
        "our own link moves at once under IfAbsent": (
            facts(podlink(2, ABSENT, linked(1), edited=True), permanent(1)),
            try_set(2, expected=1),
        ),
        "a move that starts from nothing is announced under IfAbsent": (
            facts(podlink(2, ABSENT, linked(1), edited=True), NO_LINK),
            "announce",
        ),
        "a moved link is ours under IfAbsent": (
            facts(podlink(2, ABSENT, linked(1), edited=True), permanent(2), acted=True, replaced=1),
            is_linked(2, Reason.LINKED),
        ),
        "a moved link is ours under IfAbsent after a crash that came before the report": (
            facts(podlink(2, ABSENT, linked(1), edited=True), permanent(2)),
            is_linked(2),
        ),
        "an adopted link does not move": (
            facts(podlink(2, ABSENT, adopted(1), edited=True), permanent(1)),
            is_adopted(1),
        ),
        "a move is reported after a crash that came before the report": (
            facts(podlink(2, TRY, linked(1), edited=True), permanent(2)),
            is_linked(2),
        ),
        "our link stays where it is until the new pod is there": (
            facts(podlink(7, TRY, linked(1), edited=True), permanent(1)),
            waits(Reason.POD_NOT_FOUND, pod_id=1),
        ),
        "our link moves on when the new pod appears": (
            facts(podlink(2, TRY, reported(Phase.PENDING, Reason.POD_NOT_FOUND, pod_id=1, owned=True)), permanent(1)),
            try_set(2, expected=1),
        ),
        "our link moves away from a lost pod": (
            facts(podlink(0, TRY, linked(1), edited=True), permanent(1), GONE),
            try_set(0, expected=1),
        ),
        "somebody else's link stops the move": (
            facts(podlink(2, TRY, linked(1), edited=True), permanent(0)),
            HELD,
        ),
        "a podId that is left out keeps the link where it is": (
            facts(podlink(None, TRY, linked(1), edited=True), permanent(1)),
            LINKED_TO_1,
        ),
        "a podId that names where the link is already changes nothing": (
            facts(podlink(1, TRY, linked(1), edited=True), permanent(1)),
            LINKED_TO_1,
        ),
    }
)
def test_moves(given: Facts, expected: Said) -> None:
    assert said(decide(given)) == expected


@table(
    {
        "the younger of two does not link": (facts(podlink(1), holder=older(2)), DUPLICATE),
        "the younger of two does not report the older one's link": (
            facts(podlink(1), permanent(1), holder=older(2)),
            DUPLICATE,
        ),
        "the younger of two releases the link it has": (
            facts(podlink(1, TRY, linked(1)), permanent(1), holder=older(2)),
            ReleaseLink(1, 0),
        ),
        "the younger of two leaves its link to the older, which wants that pod": (
            facts(podlink(1, TRY, linked(1)), permanent(1), holder=older(1)),
            DUPLICATE,
        ),
        "the younger of two leaves its link to the older, which takes any pod": (
            facts(podlink(1, TRY, linked(1)), permanent(1), holder=older(None, Policy.SET)),
            DUPLICATE,
        ),
        "the younger of two releases its link for an older that would only adopt it": (
            facts(podlink(1, TRY, linked(1)), permanent(1), holder=older(1, ABSENT)),
            ReleaseLink(1, 0),
        ),
        "the younger of two reports once its link is gone": (
            facts(podlink(1, TRY, linked(1)), NO_LINK, holder=older(2), acted=True),
            DUPLICATE,
        ),
        "the younger of two leaves a link to another pod": (
            facts(podlink(1, TRY, linked(1)), permanent(2), holder=older(2)),
            DUPLICATE,
        ),
        "the younger of two leaves a link in its reconnect window": (
            facts(podlink(1, TRY, linked(1)), window(1), holder=older(2)),
            DUPLICATE,
        ),
        "the younger of two leaves the link it adopted": (
            facts(podlink(1, ABSENT, adopted(1)), permanent(1), holder=older(2)),
            DUPLICATE,
        ),
        "the younger of two stays settled": (
            facts(podlink(1, TRY, reported(Phase.EXPIRED, Reason.EXPIRED), persist=60), holder=older(2)),
            EXPIRED,
        ),
        "the younger of two links when it is the only one": (
            facts(podlink(1, TRY, reported(Phase.CONFLICT, Reason.DUPLICATE))),
            try_set(1),
        ),
    }
)
def test_duplicates(given: Facts, expected: Said) -> None:
    assert said(decide(given)) == expected


def deleted(pod_id: int | None, status: Status, policy: Policy = TRY, **fields: Any) -> PodLink:
    return podlink(pod_id, policy, status, deleting=True, **fields)


@table(
    {
        "our link is released": (facts(deleted(1, linked(1)), permanent(1)), ReleaseLink(1, 0)),
        "our link is released into its reconnect window": (
            facts(deleted(1, linked(1), release=30), permanent(1)),
            ReleaseLink(1, 30),
        ),
        "our picked link is released": (facts(deleted(None, linked(1)), permanent(1)), ReleaseLink(1, 0)),
        "our temporary link is released": (
            facts(deleted(1, linked(1, left=30), persist=60), temporary(1, 30)),
            ReleaseLink(1, 0),
        ),
        "our unlisted link is released": (facts(deleted(1, linked(1)), unlisted(1)), ReleaseLink(1, 0)),
        "our link to a lost pod is released": (facts(deleted(1, linked(1)), permanent(1), GONE), ReleaseLink(1, 0)),
        "our link is released while the service is gone": (
            facts(deleted(1, linked(1)), permanent(1), NOTHING),
            ReleaseLink(1, 0),
        ),
        "our link is released after an outage was reported": (
            facts(deleted(1, redis_unavailable(deleted(1, linked(1)), NOW)), permanent(1)),
            ReleaseLink(1, 0),
        ),
        "there is nothing to release": (facts(deleted(1, linked(1))), "let go"),
        "a link in its reconnect window is left to its end": (
            facts(deleted(1, linked(1), release=30), window(1, 20)),
            "let go",
        ),
        "somebody else's link to another pod stays": (facts(deleted(1, linked(1)), permanent(2)), "let go"),
        "somebody else's link instead of the picked one stays": (
            facts(deleted(None, linked(1)), permanent(2)),
            "let go",
        ),
        "an adopted link stays": (facts(deleted(1, adopted(1), ABSENT), permanent(1)), "let go"),
        "a link that was in our way stays": (
            facts(deleted(1, reported(Phase.CONFLICT, Reason.HELD_BY_ANOTHER_POD)), permanent(2)),
            "let go",
        ),
        "the older PodLink's link stays": (
            facts(deleted(1, reported(Phase.CONFLICT, Reason.DUPLICATE)), permanent(1), holder=older(2)),
            "let go",
        ),
        "the older PodLink's link stays though nothing was reported": (
            facts(deleted(None, NEW), permanent(1), holder=older(2)),
            "let go",
        ),
        "our link is released before the older PodLink takes over": (
            facts(deleted(1, linked(1)), permanent(1), holder=older(2)),
            ReleaseLink(1, 0),
        ),
        "a link written but not reported is released": (facts(deleted(1, NEW), permanent(1)), ReleaseLink(1, 0)),
        "a link picked but not reported is released": (facts(deleted(None, NEW), permanent(2)), ReleaseLink(2, 0)),
        "a link to another pod stays though nothing was reported": (
            facts(deleted(1, NEW), permanent(2)),
            "let go",
        ),
        "a link announced and written but not reported is released": (
            facts(deleted(1, ANNOUNCED, ABSENT), permanent(1)),
            ReleaseLink(1, 0),
        ),
        "a link announced and picked but not reported is released": (
            facts(deleted(None, ANNOUNCED, ABSENT), permanent(2)),
            ReleaseLink(2, 0),
        ),
        "a link to another pod than announced stays": (
            facts(deleted(1, ANNOUNCED, ABSENT), permanent(2)),
            "let go",
        ),
        "a link stays that IfAbsent never announced": (facts(deleted(1, NEW, ABSENT), permanent(1)), "let go"),
        "a link moved but not reported is released": (
            facts(deleted(2, linked(1)), permanent(2)),
            ReleaseLink(2, 0),
        ),
        "a link that was yet to move is released": (facts(deleted(2, linked(1)), permanent(1)), ReleaseLink(1, 0)),
        "a link relinked but not reported is released": (
            facts(deleted(None, linked(1), loss=RELINK), permanent(0), GONE),
            ReleaseLink(0, 0),
        ),
        "a link picked anew after Redis lost it and not reported is released": (
            facts(deleted(None, linked(1)), permanent(0), GONE),
            ReleaseLink(0, 0),
        ),
        "somebody else's link instead of a lost one stays under IfAbsent": (
            facts(deleted(None, linked(1), ABSENT, loss=RELINK), permanent(0), GONE),
            "let go",
        ),
        "somebody else's link stays when ours expired": (
            facts(deleted(1, reported(Phase.EXPIRED, Reason.EXPIRED), persist=60), permanent(1)),
            "let go",
        ),
        "somebody else's link stays when ours was released": (
            facts(deleted(None, reported(Phase.RELEASED, Reason.POD_LOST), loss=RELEASE), permanent(1)),
            "let go",
        ),
        "a link made anew by an edit and not reported is released": (
            facts(deleted(1, reported(Phase.EXPIRED, Reason.EXPIRED), edited=True), permanent(1)),
            ReleaseLink(1, 0),
        ),
    }
)
def test_deletion(given: Facts, expected: Said) -> None:
    assert said(decide(given)) == expected


def as_reported(link: PodLink, status: Status) -> PodLink:
    """The PodLink as the API server has it after the report."""
    stored = {name: value for name, value in status.to_json().items() if value is not None}
    return with_status(link, msgspec.convert(stored, Status))


@pytest.mark.parametrize("given", list(EVERY_FACTS.values()), ids=list(EVERY_FACTS))
def test_what_was_reported_is_not_reported_again(given: Facts) -> None:
    decision = decide(given)
    if decision.status is None:
        return
    link = as_reported(given.link, decision.status)
    later = decide(msgspec.structs.replace(given, link=link, acted=False, replaced=None))
    if given.acted and decision.status.reason == Reason.NO_READY_POD:
        assert isinstance(later.action, PickPod), "a pick that failed is tried again"
        return
    assert later.action is None
    assert later.status == link.status


@pytest.mark.parametrize("given", list(EVERY_FACTS.values()), ids=list(EVERY_FACTS))
def test_nobody_is_woken_but_for_a_reason(given: Facts) -> None:
    """The end of a lifetime, or a pod that is Ready though Redis does not know it yet."""
    decision = decide(given)
    expires = decision.status is not None and decision.status.phase is Phase.LINKED and given.record.ttl_ms is not None
    unknown = decision.status is not None and decision.status.reason == Reason.NO_READY_POD and given.service.ready
    if not (expires or unknown) or given.link.settled:
        assert decision.wake_at is None
    else:
        assert decision.wake_at is not None
        assert decision.wake_at > given.now


@pytest.mark.parametrize("given", list(EVERY_FACTS.values()), ids=list(EVERY_FACTS))
def test_only_a_link_that_is_waited_for_is_watched(given: Facts) -> None:
    decision = decide(given)
    held = decision.status is not None and decision.status.reason == Reason.HELD_BY_ANOTHER_POD
    assert decision.watch_record is held


def report(given: Facts) -> Status:
    decision = decide(given)
    assert decision.status is not None
    return decision.status


LATER = NOW + timedelta(milliseconds=400)


def test_report_of_a_new_link() -> None:
    status = report(facts(podlink(1), permanent(1), acted=True, now=LATER))
    assert (status.pod_id, status.pod_name, status.previous_pod_id, status.owned) == (1, "lobby-1", None, True)
    assert (status.linked_at, status.expires_at, status.observed_generation) == (LATER, None, 1)
    (condition,) = status.conditions
    assert (condition.type, condition.status, condition.reason) == ("Ready", "True", "Linked")
    assert condition.last_transition_time == LATER
    assert condition.observed_generation == 1


def test_pod_name_is_the_pods_own() -> None:
    service = lobby()
    odd = msgspec.structs.replace(service.pods[1], name="web-1")
    status = report(facts(podlink(1), permanent(1), view_service("games", "lobby", [odd], service.workloads)))
    assert status.pod_name == "web-1"


EXPIRED_AT_1 = reported(Phase.EXPIRED, Reason.EXPIRED, previous_pod_id=1)


@pytest.mark.parametrize(
    ("given", "previous"),
    [
        pytest.param(facts(podlink(1), permanent(1), acted=True), None, id="there was none"),
        pytest.param(facts(podlink(1), permanent(1)), None, id="the link was there"),
        pytest.param(facts(podlink(1, SET), permanent(1), acted=True, replaced=2), 2, id="another was overwritten"),
        pytest.param(facts(podlink(1), permanent(1), acted=True, replaced=1), None, id="it was made permanent"),
        pytest.param(
            facts(podlink(2, TRY, linked(1), edited=True), permanent(2), acted=True, replaced=1), 1, id="it was moved"
        ),
        pytest.param(facts(podlink(2, TRY, linked(1), edited=True), permanent(2)), 1, id="moved before a crash"),
        pytest.param(facts(podlink(1, TRY, linked(1, previous_pod_id=2)), permanent(1)), 2, id="moved before"),
        pytest.param(
            facts(podlink(None, TRY, linked(1), loss=RELINK), permanent(0), GONE, acted=True, replaced=1),
            1,
            id="its pod was lost",
        ),
        pytest.param(facts(podlink(None, TRY, linked(1)), permanent(2)), 1, id="somebody else moved it"),
        pytest.param(facts(podlink(1, TRY, linked(1)), permanent(2)), 1, id="somebody else has it now"),
        pytest.param(facts(minute(-1)), 1, id="it expired"),
        pytest.param(facts(podlink(7, TRY, linked(1), edited=True), permanent(1)), None, id="it is yet to move"),
        pytest.param(
            facts(podlink(1, TRY, reported(Phase.CONFLICT, Reason.DUPLICATE, previous_pod_id=2)), permanent(1)),
            2,
            id="it waited for another PodLink",
        ),
        pytest.param(
            facts(
                podlink(0, TRY, reported(Phase.EXPIRED, Reason.EXPIRED, previous_pod_id=1), edited=True), permanent(0)
            ),
            1,
            id="it expired and is made anew",
        ),
    ],
)
def test_previous_pod(given: Facts, previous: int | None) -> None:
    assert report(given).previous_pod_id == previous


def test_previous_pod_of_a_link_made_in_place_of_an_adopted_one() -> None:
    announcement = decide(facts(podlink(2, ABSENT, adopted(1)))).action
    assert isinstance(announcement, Intend)
    assert announcement.status.previous_pod_id == 1


def seconds(count: float) -> datetime:
    return NOW + timedelta(seconds=count)


@pytest.mark.parametrize(
    ("given", "linked_at"),
    [
        pytest.param(facts(podlink(1), permanent(1)), NOW, id="new"),
        pytest.param(facts(podlink(1, TRY, linked(1)), permanent(1)), EARLIER, id="as before"),
        pytest.param(facts(podlink(1, TRY, linked(1)), permanent(1), acted=True), EARLIER, id="repaired"),
        pytest.param(facts(podlink(2, TRY, linked(1), edited=True), permanent(2), acted=True), NOW, id="moved"),
        pytest.param(
            facts(minute(30, persist=600, edited=True), temporary(1, 600), acted=True), NOW, id="given a new lifetime"
        ),
        pytest.param(
            facts(minute(42), temporary(1, 42), acted=True), NOW - timedelta(seconds=18), id="repaired in time"
        ),
    ],
)
def test_linked_at(given: Facts, linked_at: datetime) -> None:
    assert report(given).linked_at == linked_at


@pytest.mark.parametrize(
    ("given", "expires_at", "wake_after"),
    [
        # A metav1.Time has whole seconds. Rounded up, it never says that a link is gone while it is there.
        pytest.param(facts(podlink(1, persist=60), temporary(1, 59.7)), seconds(60), 59.72, id="in whole seconds"),
        pytest.param(facts(podlink(1, persist=60), temporary(1, 60)), seconds(61), 60.02, id="never too early"),
        pytest.param(facts(minute(42), temporary(1, 41.2)), seconds(42), 41.22, id="as reported"),
        pytest.param(facts(minute(42), temporary(1, 43.9)), seconds(42), 43.92, id="a second more is no news"),
        pytest.param(facts(minute(42), temporary(1, 44)), seconds(45), 44.02, id="extended"),
        pytest.param(facts(minute(42), temporary(1, 38.9)), seconds(39), 38.92, id="shortened"),
        pytest.param(facts(minute(42, pod_id=2), temporary(2, 43)), seconds(44), 43.02, id="of another pod"),
        pytest.param(facts(podlink(1), permanent(1)), None, None, id="permanent"),
        pytest.param(facts(podlink(1, ABSENT), window(1, 5)), seconds(6), 5.02, id="adopted"),
        pytest.param(
            facts(minute(42), temporary(1, 41.2), lobby([0], replicas=1)), seconds(42), 41.22, id="of a lost pod"
        ),
    ],
)
def test_expiry(given: Facts, expires_at: datetime | None, wake_after: float | None) -> None:
    decision = decide(given)
    assert report(given).expires_at == expires_at
    assert decision.wake_at == (None if wake_after is None else seconds(wake_after))


def test_expiry_is_told_right_after_the_end() -> None:
    """From the link being made to the report of its end, by the alarm clocks that `decide` sets alone."""
    link = podlink(1, persist=20)
    decision = decide(facts(link, temporary(1, 20), acted=True, now=LATER))
    assert decision.status is not None
    assert decision.wake_at is not None
    link = as_reported(link, decision.status)
    assert decision.wake_at == LATER + timedelta(seconds=20.02)
    assert said(decide(facts(link, NO_LINK, now=decision.wake_at))) == EXPIRED


@pytest.mark.parametrize(
    ("given", "value", "since"),
    [
        pytest.param(facts(podlink(1), permanent(1)), "True", NOW, id="first report"),
        pytest.param(facts(podlink(7)), "False", NOW, id="first report of waiting"),
        pytest.param(facts(podlink(1, TRY, linked(1)), permanent(1)), "True", EARLIER, id="nothing changed"),
        pytest.param(
            facts(podlink(2, TRY, linked(1), edited=True), permanent(2)), "True", EARLIER, id="ready at another pod"
        ),
        pytest.param(facts(podlink(1, TRY, linked(1)), permanent(2)), "False", NOW, id="ready no more"),
        pytest.param(facts(podlink(1, TRY, linked(1)), permanent(1), GONE), "False", NOW, id="its pod is lost"),
        pytest.param(
            facts(podlink(1, TRY, reported(Phase.PENDING, Reason.POD_NOT_FOUND)), permanent(2)),
            "False",
            EARLIER,
            id="not ready for another reason",
        ),
        pytest.param(
            facts(podlink(1, TRY, reported(Phase.PENDING, Reason.POD_NOT_FOUND)), permanent(1), acted=True),
            "True",
            NOW,
            id="ready at last",
        ),
    ],
)
def test_condition_says_since_when(given: Facts, value: str, since: datetime) -> None:
    condition = report(given).ready
    assert (condition.status, condition.last_transition_time) == (value, since)
    assert condition.observed_generation == given.link.generation


YOUNGER_MESSAGE = (
    "PodLink older is older and links uid player-42 to service lobby; this one takes over when that one is deleted"
)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (facts(podlink(1), permanent(1)), "uid player-42 is linked to pod 1 (lobby-1)"),
        (
            facts(podlink(1, ABSENT), permanent(1)),
            "uid player-42 was linked to pod 1 (lobby-1) before; that link is left alone on delete",
        ),
        (
            facts(podlink(1), permanent(2)),
            "uid player-42 has a permanent link to pod 2 (lobby-2); it is taken over when released",
        ),
        (
            facts(podlink(1), holder=older(2)),
            YOUNGER_MESSAGE,
        ),
        (facts(podlink(7)), "service lobby has no pod 7"),
        (facts(podlink(None), service=lobby(ready=())), "service lobby has no Ready pod"),
        (facts(podlink(1), service=NOTHING), "no pod or StatefulSet of service lobby is there"),
        (facts(minute(-1)), "the link to pod 1 (lobby-1) expired; it is not linked again"),
        (
            facts(podlink(1, TRY, linked(1)), permanent(1), GONE),
            "pod 1 (lobby-1) is no longer part of its service; the link is kept (onPodLoss: Keep)",
        ),
        (
            facts(podlink(None, TRY, linked(1), loss=RELINK), permanent(1), GONE_AND_NO_OTHER),
            "pod 1 (lobby-1) is no longer part of its service; relinks when a pod is Ready",
        ),
        (
            facts(podlink(1, TRY, linked(1), loss=RELEASE), NO_LINK, GONE),
            "pod 1 (lobby-1) is no longer part of its service; the link was released (onPodLoss: Release)",
        ),
        (
            facts(podlink(None, ABSENT), permanent(7)),
            "pod 7 (lobby-7) is no longer part of its service; the link, not made by this PodLink, is left alone",
        ),
    ],
    ids=lambda value: value.replace("/", "") if isinstance(value, str) else "",
)
def test_message(given: Facts, message: str) -> None:
    assert report(given).ready.message == message


@pytest.mark.parametrize(
    "status",
    [reported(Phase.EXPIRED, Reason.EXPIRED), reported(Phase.RELEASED, Reason.POD_LOST)],
    ids=["expired", "released"],
)
@pytest.mark.parametrize("record", list(RECORDS.values()), ids=list(RECORDS))
@pytest.mark.parametrize("service", [lobby(), GONE, NOTHING], ids=["all pods", "pod 1 gone", "no pods"])
def test_settled_podlink_is_left_alone(status: Status, record: LinkRecord, service: ServiceView) -> None:
    decision = decide(facts(podlink(1, TRY, status, persist=60), record, service))
    assert decision == Decision(status=status)


def test_outage_is_told_of_and_nothing_else_changes() -> None:
    link = podlink(2, TRY, linked(1), edited=True)
    status = redis_unavailable(link, NOW)
    condition = status.ready
    assert (condition.status, condition.reason) == ("False", "RedisUnavailable")
    assert condition.message == "Redis cannot be reached; the link waits for its return"
    assert condition.last_transition_time == NOW
    assert msgspec.structs.replace(status, conditions=link.status.conditions) == link.status
    assert as_reported(link, status).edited, "the edit is still to be acted upon"


def test_outage_at_the_start() -> None:
    status = redis_unavailable(podlink(1), NOW)
    assert (status.phase, status.observed_generation) == (Phase.PENDING, None)


def test_outage_during_deletion() -> None:
    status = redis_unavailable(deleted(1, linked(1)), NOW)
    assert status.ready.message == "Redis cannot be reached; the release waits for its return"
    assert status.pod_id == 1


def test_outage_is_over() -> None:
    link = podlink(2, TRY, linked(1), edited=True)
    link = as_reported(link, redis_unavailable(link, NOW))
    assert said(decide(facts(link, permanent(1)))) == try_set(2, expected=1)
    status = report(facts(link, permanent(2), acted=True, replaced=1, now=LATER))
    assert (status.phase, status.pod_id, status.previous_pod_id, status.reason) == (Phase.LINKED, 2, 1, "Linked")
    assert status.ready.last_transition_time == LATER


@pytest.mark.parametrize(
    ("link", "pods"),
    [
        pytest.param(podlink(1), {1}, id="new, to a pod"),
        pytest.param(podlink(None), {None}, id="new, to any pod"),
        pytest.param(podlink(1, TRY, linked(1)), {1}, id="linked"),
        pytest.param(podlink(None, TRY, linked(1)), {1}, id="linked to any pod"),
        pytest.param(podlink(2, TRY, linked(1), edited=True), {1, 2}, id="about to move"),
        pytest.param(podlink(None, ABSENT, adopted(1)), {1}, id="adopted"),
        pytest.param(
            podlink(None, TRY, linked(1, reason=Reason.POD_LOST, ok=False), loss=RELINK), {1, None}, id="to be relinked"
        ),
        pytest.param(podlink(None, TRY, linked(1, reason=Reason.POD_LOST, ok=False)), {1}, id="kept though lost"),
        pytest.param(podlink(1, TRY, reported(Phase.EXPIRED, Reason.EXPIRED)), set(), id="expired"),
        pytest.param(podlink(1, TRY, reported(Phase.EXPIRED, Reason.EXPIRED), edited=True), {1}, id="expired, edited"),
        pytest.param(deleted(1, linked(1)), set(), id="deleted"),
    ],
)
def test_pods_that_a_podlink_looks_at(link: PodLink, pods: set[int | None]) -> None:
    assert interests(link) == pods
