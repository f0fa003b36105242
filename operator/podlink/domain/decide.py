"""What to do about a PodLink, decided from facts alone.

`decide` is a pure function: it is given the object, what Redis holds, what the service looks like and the time, and
it returns one action or, when there is nothing to do, the report for the status. The controller carries the
action out, gathers the facts again and asks again, so that a crash at any point is only a later start from the same
question. No rule looks at how a state came about, only at what it is.

Whose a link is: under TrySet and Set a PodLink owns the link that matches its declaration, whoever wrote it first.
Under IfAbsent it owns only what it set itself; because a crash between the write and the report would hide that,
the intention is put into the status (`owned: true`) before the write.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property
from math import ceil
from typing import Literal

import msgspec

from podlink.domain.podlinks import Condition, OnPodLoss, Phase, PodLink, Policy, Reason, Spec, Status
from podlink.domain.services import ServiceView

CLOCK_TOLERANCE = timedelta(seconds=2)
"""Differences between an expiry read from Redis and the one reported that are no news."""

_ALMOST_EXPIRED = timedelta(seconds=1)
_ASK_AGAIN = timedelta(seconds=1)
_AFTER_EXPIRY = timedelta(milliseconds=20)


class LinkRecord(msgspec.Struct, frozen=True):
    """One link as Redis holds it."""

    pod_id: int | None = None
    ttl_ms: int | None = None
    """Milliseconds left; None for a permanent link (or none at all)."""
    listed: int | None = None
    """What the uid's hash says; None while the link is in its reconnect window."""

    @property
    def permanent(self) -> bool:
        """Whether there is a link that does not expire."""
        return self.pod_id is not None and self.ttl_ms is None

    @property
    def in_window(self) -> bool:
        """Whether the link was released and is kept only for a reconnect."""
        return self.pod_id is not None and self.ttl_ms is not None and self.listed != self.pod_id


class Facts(msgspec.Struct, frozen=True):
    """Everything a decision rests on."""

    link: PodLink
    record: LinkRecord
    service: ServiceView
    holder: PodLink | None
    """The older PodLink for the same uid and service, if there is one."""
    now: datetime
    acted: bool = False
    """Whether an action of this same reconciliation went before."""
    replaced: int | None = None
    """The pod that the link pointed to before this reconciliation acted."""


class Intend(msgspec.Struct, frozen=True):
    """Report `owned: true` before the first write."""

    status: Status
    """What to report."""


class Write(StrEnum):
    """Which of the three link scripts to write with."""

    SET = "set"
    TRY_SET = "try_set"
    IF_ABSENT = "if_absent"


class SetLink(msgspec.Struct, frozen=True):
    """Link to one pod."""

    how: Write
    pod_id: int
    persist_seconds: int
    expected: int | None = None


class PickPod(msgspec.Struct, frozen=True):
    """Link to the least loaded Ready pod; with `instead_of`, give the link to that pod up first."""

    persist_seconds: int
    instead_of: int | None = None


class ReleaseLink(msgspec.Struct, frozen=True):
    """Remove the link while it points to the pod; keep it `persist_seconds` more as a reconnect window."""

    pod_id: int
    persist_seconds: int


Action = Intend | SetLink | PickPod | ReleaseLink


class Decision(msgspec.Struct, frozen=True):
    """One action, or the report."""

    action: Action | None = None
    status: Status | None = None
    finalize: bool = False
    """Nothing is left to release: the finalizer may go."""
    wake_at: datetime | None = None
    """When to look again though nothing may have been heard until then."""
    watch_record: bool = False
    """Whether only a change in Redis, which no event reports, leads on from here."""


class _Case:
    """Facts with what follows from them; lives for one decision."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.link = facts.link
        self.spec: Spec = facts.link.spec
        self.status: Status = facts.link.status
        self.record = facts.record
        self.service = facts.service
        self.now = facts.now

    @cached_property
    def held(self) -> int | None:
        """The pod that this PodLink's own link points to, or should."""
        status, record, service = self.status, self.record, self.service
        mine = status.pod_id if status.owned else None
        if mine is not None and record.pod_id != mine and not service.has(mine) and not service.expects(mine):
            mine = None  # nothing is left of it: no link, and no pod that stays
        if self.spec.policy is Policy.IF_ABSENT:
            return mine if record.pod_id in (None, mine) else self.unreported
        if self.spec.pod_id is not None:
            return mine
        # Without a podId any pod will do, so a link that is there already is the declared one. A temporary link of
        # somebody else does not outweigh a permanent one of our own.
        if record.pod_id is not None and not record.in_window:
            yields = self.spec.policy is Policy.TRY_SET and (record.permanent or self.spec.temporary)
            if mine is None or yields:
                return record.pod_id
        return mine

    @property
    def unreported(self) -> int | None:
        """IfAbsent: the pod that Redis has, if the link may be one that this PodLink made and has not reported yet."""
        status, record = self.status, self.record
        if not status.owned or record.pod_id is None or record.listed != record.pod_id:
            return None
        announced = status.pod_id if self.spec.pod_id is None else self.spec.pod_id
        return record.pod_id if announced in (None, record.pod_id) else None

    @property
    def target(self) -> int | None:
        """The pod to link to; None when it is still to be picked."""
        return self.spec.pod_id if self.spec.pod_id is not None else self.held

    @property
    def persist_seconds(self) -> int:
        """For a write: what is left of the lifetime when a link is repaired, else the whole of it."""
        left = self.time_left
        if left is None or self.lifetime_edited or self.target != self.status.pod_id:
            return self.spec.persist_seconds
        return max(1, ceil(left.total_seconds()))

    @property
    def time_left(self) -> timedelta | None:
        if not self.spec.temporary or self.status.expires_at is None:
            return None
        return self.status.expires_at - self.now

    @property
    def lifetime_edited(self) -> bool:
        status = self.status
        if not self.link.edited or not self.spec.temporary or self.facts.acted:
            return False
        if status.linked_at is None or status.expires_at is None:
            return status.linked_at is not None
        reported = status.expires_at - status.linked_at
        return abs(reported - timedelta(seconds=self.spec.persist_seconds)) > CLOCK_TOLERANCE

    def pod(self, pod_id: int) -> str:
        return f"pod {pod_id} ({self.service.pod_name(pod_id)})"


def decide(facts: Facts) -> Decision:
    """Return what to do next about a PodLink."""
    if facts.link.deleting:
        return _release(facts)
    if facts.link.settled:
        return Decision(status=facts.link.status)
    case = _Case(facts)
    for rule in _RULES:
        decision = rule(case)
        if decision is not None:
            return decision
    return _write(case)


def redis_unavailable(link: PodLink, now: datetime, refusal: str = "") -> Status:
    """Return the report of a wish that waits for Redis; what was reported of the link itself stays.

    Args:
        link: whose wish it is.
        now: the time.
        refusal: what a Redis that does answer says of this link alone; empty when there is none.
    """
    waiting = "release" if link.deleting else "link"
    message = f"Redis cannot be reached; the {waiting} waits for its return"
    if refusal:
        message = f"Redis refuses the {waiting}, which is tried again: {refusal}"
    status = msgspec.structs.replace(link.status, phase=link.status.phase or Phase.PENDING)
    report = _with_ready(link, status, Reason.REDIS_UNAVAILABLE, message, ok=False, now=now)
    # The spec has not been acted upon, so its generation is not observed yet.
    return msgspec.structs.replace(report, observed_generation=link.status.observed_generation)


def interests(link: PodLink) -> frozenset[int | None]:
    """Return the pod ids whose coming and going concerns a PodLink; None stands for any Ready pod."""
    if link.settled or link.deleting:
        return frozenset()
    ids: set[int | None] = {pod_id for pod_id in (link.spec.pod_id, link.status.pod_id) if pod_id is not None}
    relinks = link.spec.on_pod_loss is OnPodLoss.RELINK and link.status.reason == Reason.POD_LOST
    if link.spec.pod_id is None and (link.status.pod_id is None or relinks):
        ids.add(None)
    return frozenset(ids)


def _release(facts: Facts) -> Decision:
    """Deleted objects: take out of Redis what is ours, then let the object go."""
    record = facts.record
    if record.pod_id is None or record.in_window or not _to_release(facts, record.pod_id):
        return Decision(finalize=True)
    return Decision(action=ReleaseLink(record.pod_id, facts.link.spec.release_seconds))


def _to_release(facts: Facts, linked: int) -> bool:
    """Whether the link is this PodLink's, also when it died between writing the link and reporting it."""
    spec, status = facts.link.spec, facts.link.status
    if facts.holder is not None and status.pod_id is None:
        return False
    if facts.link.settled or status.owned is False:
        return False
    if status.owned is None and spec.policy is Policy.IF_ABSENT:
        return False
    ours = {pod_id for pod_id in (spec.pod_id, status.pod_id) if pod_id is not None}
    if linked in ours or not ours:
        return True
    # Instead of a pod that is gone for good it may have picked another.
    replaced = spec.pod_id is None and status.pod_id is not None and facts.service.lost(status.pod_id)
    return replaced and spec.policy is not Policy.IF_ABSENT


def _duplicate(case: _Case) -> Decision | None:
    holder = case.facts.holder
    if holder is None:
        return None
    linked = case.record.pod_id
    ours = case.status.owned and linked == case.status.pod_id and not case.record.in_window
    # What the holder would link to itself is left to it, so that the user is not unlinked in between. Under IfAbsent
    # it would only adopt the link, and nobody would own it any more.
    inherited = holder.spec.policy is not Policy.IF_ABSENT and holder.spec.pod_id in (None, linked)
    if linked is not None and ours and not inherited:
        return Decision(action=ReleaseLink(linked, 0))
    return _report(
        case,
        Phase.CONFLICT,
        Reason.DUPLICATE,
        f"PodLink {holder.name} is older and links uid {case.spec.uid} to service {case.spec.service}; "
        f"this one takes over when that one is deleted",
    )


def _expired(case: _Case) -> Decision | None:
    left = case.time_left
    held = case.status.pod_id if case.status.owned else None
    if left is None or held is None or case.lifetime_edited:
        return None
    if left > _ALMOST_EXPIRED or (case.record.listed == held and case.record.pod_id == held):
        return None
    return _report(case, Phase.EXPIRED, Reason.EXPIRED, f"the link to {case.pod(held)} expired; it is not linked again")


def _lost(case: _Case) -> Decision | None:
    """The linked pod is gone for good, and the spec names no other."""
    held = case.held
    if held is None or case.target != held or not case.service.lost(held):
        return _released_before(case)
    gone = f"{case.pod(held)} is no longer part of its service"
    if case.spec.on_pod_loss is OnPodLoss.RELEASE:
        return Decision(action=ReleaseLink(held, 0))
    if case.spec.on_pod_loss is OnPodLoss.RELINK:
        if case.service.ready and case.spec.policy is Policy.IF_ABSENT and case.status.pod_id is not None:
            return Decision(action=_announcement(case))
        if case.service.ready:
            return Decision(action=PickPod(case.spec.persist_seconds, instead_of=held))
        return _linked(case, held, Reason.POD_LOST, f"{gone}; relinks when a pod is Ready", ok=False)
    return _linked(case, held, Reason.POD_LOST, f"{gone}; the link is kept (onPodLoss: Keep)", ok=False)


def _released_before(case: _Case) -> Decision | None:
    """The last step of onPodLoss: Release, after the link went."""
    held = case.status.pod_id if case.status.owned else None
    moves = case.held not in (None, held) or case.spec.pod_id not in (None, held)
    if held is None or moves or case.spec.on_pod_loss is not OnPodLoss.RELEASE or not case.service.lost(held):
        return None
    return _report(
        case,
        Phase.RELEASED,
        Reason.POD_LOST,
        f"{case.pod(held)} is no longer part of its service; the link was released (onPodLoss: Release)",
    )


def _adopted(case: _Case) -> Decision | None:
    """IfAbsent: a link that is there and not ours is taken as it is."""
    pod_id = case.record.pod_id
    if case.spec.policy is not Policy.IF_ABSENT or pod_id is None or case.held is not None:
        return None
    if case.service.lost(pod_id):
        message = (
            f"{case.pod(pod_id)} is no longer part of its service; the link, not made by this PodLink, is left alone"
        )
        return _linked(case, pod_id, Reason.POD_LOST, message, ok=False, owned=False)
    message = f"uid {case.spec.uid} was linked to {case.pod(pod_id)} before; that link is left alone on delete"
    return _linked(case, pod_id, Reason.ALREADY_LINKED, message, owned=False)


def _conflict(case: _Case) -> Decision | None:
    """TrySet: a permanent link of somebody else wins."""
    record = case.record
    if case.spec.policy is not Policy.TRY_SET or not record.permanent or record.pod_id is None:
        return None
    if record.pod_id in (case.target, case.held):
        return None
    decision = _report(
        case,
        Phase.CONFLICT,
        Reason.HELD_BY_ANOTHER_POD,
        f"uid {case.spec.uid} has a permanent link to {case.pod(record.pod_id)}; it is taken over when released",
    )
    return msgspec.structs.replace(decision, watch_record=True)


def _waiting(case: _Case) -> Decision | None:
    """There is no pod to link to yet."""
    service, target, name = case.service, case.target, case.spec.service
    if target is None:
        if case.record.pod_id is not None and service.has(case.record.pod_id):
            return None
        if service.ready and not (case.facts.acted and case.record.pod_id is None):
            return None
        reason, message = Reason.NO_READY_POD, f"service {name} has no Ready pod"
    else:
        repairs = target == case.held and (service.expects(target) or case.record.pod_id == target)
        if service.has(target) or repairs:
            return None
        reason, message = Reason.POD_NOT_FOUND, f"service {name} has no pod {target}"
    if not service.exists:
        reason, message = Reason.WAITING_FOR_SERVICE, f"no pod or StatefulSet of service {name} is there"
    keeps_another = case.held is not None and case.record.pod_id == case.held
    decision = _report(case, Phase.PENDING, reason, message, keep_link=keeps_another)
    if target is not None or not service.ready:
        return decision
    # States reach Redis a moment after the operator hears of them.
    return msgspec.structs.replace(decision, wake_at=case.now + _ASK_AGAIN)


def _satisfied(case: _Case) -> Decision | None:
    """Redis holds what is declared."""
    pod_id, record = case.record.pod_id, case.record
    if pod_id is None or record.listed != pod_id or case.target not in (None, pod_id):
        return None
    if case.spec.temporary is record.permanent or case.lifetime_edited:
        return None
    reason = Reason.LINKED if case.facts.acted else Reason.ALREADY_LINKED
    if case.status.pod_id == pod_id and case.status.owned:
        # Reported before: an outage of Redis, or a pod that was lost and came back, changes nothing about whose it is.
        reason = Reason.ALREADY_LINKED if case.status.reason == Reason.ALREADY_LINKED else Reason.LINKED
    return _linked(case, pod_id, reason, f"uid {case.spec.uid} is linked to {case.pod(pod_id)}")


def _write(case: _Case) -> Decision:
    """Redis holds something else: write."""
    policy, target, persist = case.spec.policy, case.target, case.persist_seconds
    announced = case.status.owned and case.status.pod_id in (None, target)
    if policy is Policy.IF_ABSENT and case.record.pod_id is None and not announced:
        return Decision(action=_announcement(case))
    if target is None:
        return Decision(action=_pick(case))
    if policy is Policy.SET:
        return Decision(action=SetLink(Write.SET, target, persist))
    if policy is Policy.IF_ABSENT and case.record.pod_id is None:
        return Decision(action=SetLink(Write.IF_ABSENT, target, persist))
    return Decision(action=SetLink(Write.TRY_SET, target, persist, expected=case.held))


def _announcement(case: _Case) -> Intend:
    """Whatever was reported of a link that was adopted before is not true of the one to be made."""
    status = case.link.status
    previous = status.pod_id if status.pod_id is not None else status.previous_pod_id
    return Intend(
        Status(
            phase=Phase.PENDING,
            previous_pod_id=previous,
            owned=True,
            observed_generation=status.observed_generation,
            conditions=status.conditions,
        )
    )


def _pick(case: _Case) -> Action:
    """Any pod will do: first the one that a link in its reconnect window still points to."""
    last = case.record.pod_id
    if last is None:
        return PickPod(case.spec.persist_seconds)
    if case.service.has(last):
        return SetLink(Write.TRY_SET, last, case.spec.persist_seconds, expected=last)
    return PickPod(case.spec.persist_seconds, instead_of=last)


_RULES: tuple[Callable[[_Case], Decision | None], ...] = (
    _duplicate,
    _expired,
    _lost,
    _adopted,
    _conflict,
    _waiting,
    _satisfied,
)


def _linked(case: _Case, pod_id: int, reason: Reason, message: str, *, ok: bool = True, owned: bool = True) -> Decision:
    """Report a link that is there."""
    status = case.status
    moved = status.pod_id != pod_id
    fresh = moved or status.linked_at is None or (case.link.edited and case.facts.acted and case.spec.temporary)
    expires_at, ttl_ms = _expiry(case, moved=moved), case.record.ttl_ms
    wake_at = None if ttl_ms is None else case.now + timedelta(milliseconds=ttl_ms) + _AFTER_EXPIRY
    report = Status(
        phase=Phase.LINKED,
        pod_id=pod_id,
        pod_name=case.service.pod_name(pod_id),
        previous_pod_id=_previous(case, pod_id),
        owned=owned,
        linked_at=case.now if fresh else status.linked_at,
        expires_at=expires_at,
    )
    return Decision(status=_with_ready(case.link, report, reason, message, ok=ok, now=case.now), wake_at=wake_at)


def _expiry(case: _Case, *, moved: bool) -> datetime | None:
    if case.record.pod_id is None or case.record.ttl_ms is None:
        return None
    # A metav1.Time has whole seconds: rounded up, so that nobody looks for the end before it came.
    expires_at = case.now + timedelta(milliseconds=case.record.ttl_ms)
    expires_at = expires_at.replace(microsecond=0) + timedelta(seconds=1)
    reported = case.status.expires_at
    if not moved and reported is not None and abs(reported - expires_at) <= CLOCK_TOLERANCE:
        return reported
    return expires_at


def _previous(case: _Case, pod_id: int) -> int | None:
    status = case.status
    if status.pod_id is not None and status.pod_id != pod_id:
        return status.pod_id
    if case.facts.replaced is not None and case.facts.replaced != pod_id:
        return case.facts.replaced
    return status.previous_pod_id


def _report(case: _Case, phase: Phase, reason: Reason, message: str, *, keep_link: bool = False) -> Decision:
    """Report that there is no link of ours (or, with `keep_link`, that the one we have is not the declared one)."""
    status = case.status
    if keep_link and status.pod_id is not None:
        report = msgspec.structs.replace(status, phase=phase)
    else:
        previous = status.pod_id if status.pod_id is not None else status.previous_pod_id
        report = Status(phase=phase, previous_pod_id=previous)
    return Decision(status=_with_ready(case.link, report, reason, message, ok=False, now=case.now))


def _with_ready(link: PodLink, status: Status, reason: Reason, message: str, *, ok: bool, now: datetime) -> Status:
    """Return the status with the condition `Ready` brought up to date."""
    before = link.status.ready
    value: Literal["True", "False"] = "True" if ok else "False"
    unchanged = before.status == value and before.last_transition_time is not None
    ready = Condition(
        status=value,
        reason=reason.value,
        message=message,
        last_transition_time=before.last_transition_time if unchanged else now,
        observed_generation=link.generation,
    )
    return msgspec.structs.replace(status, observed_generation=link.generation, conditions=(ready,))
