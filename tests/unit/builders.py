"""Pods, StatefulSets, services and PodLinks in one line each, for tests that care about one thing of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from podlink.domain.decide import Facts, LinkRecord
from podlink.domain.podlinks import (
    FINALIZER,
    PERMANENT,
    Condition,
    OnPodLoss,
    Phase,
    PodLink,
    Policy,
    Reason,
    Spec,
    Status,
)
from podlink.domain.services import ServiceView, view_service
from podlink.domain.states import PodState
from podlink.domain.workloads import Pod, Workload

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NS = "games"
SVC = "lobby"
UID = "player-42"
SET = "set-uid"
"""metadata.uid of the StatefulSet that pods belong to unless told otherwise."""

NOW = datetime(2024, 5, 1, 12, 0, 0, tzinfo=UTC)
EARLIER = NOW - timedelta(minutes=10)
"""When what is reported in a status was reported."""


def make_pod(pod_id: int = 0, state: PodState = PodState.READY, **fields: Any) -> Pod:
    name = fields.pop("name", f"lobby-{pod_id}")
    defaults = {"namespace": NS, "uid": f"{name}-uid", "service": SVC, "version": 1, "owner": SET}
    return Pod(name=name, pod_id=pod_id, state=state, **(defaults | fields))


def make_workload(replicas: int = 3, **fields: Any) -> Workload:
    defaults = {
        "namespace": NS,
        "name": "lobby",
        "uid": SET,
        "service": SVC,
        "created": "2024-01-01T00:00:00Z",
        "first_id": 0,
        "ready_replicas": replicas,
        "terminating": False,
        "progressing": False,
        "version": 1,
    }
    return Workload(replicas=replicas, **(defaults | fields))


def lobby(
    ready: Iterable[int] = (0, 1, 2), others: Mapping[int, PodState] | None = None, replicas: int | None = 3
) -> ServiceView:
    """The service as it is with these pods; `replicas=None` is a service without a StatefulSet."""
    states = dict.fromkeys(ready, PodState.READY) | dict(others or {})
    pods = [make_pod(pod_id, state) for pod_id, state in states.items()]
    return view_service(NS, SVC, pods, [] if replicas is None else [make_workload(replicas)])


NOTHING = lobby(ready=(), replicas=None)
"""Neither a pod nor a StatefulSet."""


def permanent(pod_id: int) -> LinkRecord:
    return LinkRecord(pod_id, None, pod_id)


def temporary(pod_id: int, seconds: float = 60) -> LinkRecord:
    return LinkRecord(pod_id, int(seconds * 1000), pod_id)


def window(pod_id: int, seconds: float = 60) -> LinkRecord:
    """A link in its reconnect window."""
    return LinkRecord(pod_id, int(seconds * 1000), None)


def unlisted(pod_id: int) -> LinkRecord:
    """A permanent link that the uid's hash does not name."""
    return LinkRecord(pod_id, None, None)


NO_LINK = LinkRecord()


def ready_condition(reason: Reason, *, ok: bool, message: str = "", generation: int = 1) -> Condition:
    return Condition(
        status="True" if ok else "False",
        reason=reason.value,
        message=message,
        last_transition_time=EARLIER,
        observed_generation=generation,
    )


NEW = Status()
ANNOUNCED = Status(owned=True)


def linked(pod_id: int, *, left: float | None = None, lasting: float = 60, **fields: Any) -> Status:
    """Reported as linked; a temporary link has `left` seconds of a lifetime of `lasting`."""
    expires_at = None if left is None else NOW + timedelta(seconds=left)
    reason, ok = fields.pop("reason", Reason.LINKED), fields.pop("ok", True)
    defaults = {
        "phase": Phase.LINKED,
        "pod_name": f"lobby-{pod_id}",
        "owned": True,
        "linked_at": EARLIER if expires_at is None else expires_at - timedelta(seconds=lasting),
        "observed_generation": 1,
        "conditions": (ready_condition(reason, ok=ok),),
    }
    return Status(pod_id=pod_id, expires_at=expires_at, **(defaults | fields))


def adopted(pod_id: int, *, left: float | None = None, **fields: Any) -> Status:
    return linked(pod_id, left=left, owned=False, reason=Reason.ALREADY_LINKED, **fields)


def reported(phase: Phase, reason: Reason, **fields: Any) -> Status:
    """Reported as anything but linked."""
    return Status(phase=phase, observed_generation=1, conditions=(ready_condition(reason, ok=False),), **fields)


def podlink(
    pod_id: int | None = None,
    policy: Policy = Policy.TRY_SET,
    status: Status = NEW,
    *,
    persist: int = PERMANENT,
    release: int = 0,
    loss: OnPodLoss = OnPodLoss.KEEP,
    edited: bool = False,
    deleting: bool = False,
    **fields: Any,
) -> PodLink:
    """A PodLink whose spec is what its status reports on, unless `edited`.

    A deleted object has one generation more than before, as the API server does it.
    """
    spec = Spec(
        uid=fields.pop("user", UID),
        service=fields.pop("service", SVC),
        pod_id=pod_id,
        policy=policy,
        persist_seconds=persist,
        release_seconds=release,
        on_pod_loss=loss,
    )
    name = fields.pop("name", "my-link")
    defaults = {
        "namespace": NS,
        "uid": f"{name}-uid",
        "version": 1,
        "generation": 1 + edited + deleting,
        "created": "2024-02-01T00:00:00Z",
        "finalizers": (FINALIZER,),
    }
    return PodLink(name=name, deleting=deleting, spec=spec, status=status, **(defaults | fields))


def facts(
    link: PodLink,
    record: LinkRecord = NO_LINK,
    service: ServiceView | None = None,
    *,
    holder: PodLink | None = None,
    now: datetime = NOW,
    acted: bool = False,
    replaced: int | None = None,
) -> Facts:
    return Facts(
        link=link,
        record=record,
        service=lobby() if service is None else service,
        holder=holder,
        now=now,
        acted=acted,
        replaced=replaced,
    )


def with_status(link: PodLink, status: Status, **fields: Any) -> PodLink:
    return msgspec.structs.replace(link, status=status, **fields)
