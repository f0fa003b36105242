"""The PodLink type: its spec, its status, and how both are read from and written to Kubernetes objects."""

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

import msgspec

from podlink.domain.errors import PodLinkError

GROUP = "podlink.io"
VERSION = "v1alpha1"
PLURAL = "podlinks"
KIND = "PodLink"
FINALIZER = "podlink.io/release"
"""Keeps a deleted PodLink until its link is out of Redis."""

PERMANENT = -1
"""`persistSeconds` of a link without a TTL."""


class InvalidPodLinkError(PodLinkError):
    """A PodLink object that the CRD of this version would have refused."""


class Policy(StrEnum):
    """What to do about a link that is there already."""

    TRY_SET = "TrySet"
    SET = "Set"
    IF_ABSENT = "IfAbsent"


class OnPodLoss(StrEnum):
    """What to do when the linked pod is gone for good."""

    KEEP = "Keep"
    RELINK = "Relink"
    RELEASE = "Release"


class Phase(StrEnum):
    """Where a PodLink stands."""

    PENDING = "Pending"
    LINKED = "Linked"
    CONFLICT = "Conflict"
    EXPIRED = "Expired"
    RELEASED = "Released"


TERMINAL = frozenset({Phase.EXPIRED, Phase.RELEASED})
"""Phases that only an edit of the spec leads out of."""


class Reason(StrEnum):
    """Reasons of the condition `Ready`."""

    LINKED = "Linked"
    ALREADY_LINKED = "AlreadyLinked"
    WAITING_FOR_SERVICE = "WaitingForService"
    POD_NOT_FOUND = "PodNotFound"
    NO_READY_POD = "NoReadyPod"
    HELD_BY_ANOTHER_POD = "HeldByAnotherPod"
    DUPLICATE = "DuplicatePodLink"
    EXPIRED = "Expired"
    POD_LOST = "PodLost"
    REDIS_UNAVAILABLE = "RedisUnavailable"


class Spec(msgspec.Struct, frozen=True, rename="camel"):
    """What the user declares. The CRD has checked it already; defaults are repeated for objects older than the CRD."""

    uid: str
    service: str
    pod_id: int | None = None
    policy: Policy = Policy.TRY_SET
    persist_seconds: int = PERMANENT
    release_seconds: int = 0
    on_pod_loss: OnPodLoss = OnPodLoss.KEEP

    @property
    def temporary(self) -> bool:
        """Whether the link has a TTL."""
        return self.persist_seconds != PERMANENT


class Condition(msgspec.Struct, frozen=True, rename="camel"):
    """A Kubernetes condition, as in metav1.Condition."""

    type: str = "Ready"
    status: Literal["True", "False", "Unknown"] = "Unknown"
    reason: str = ""
    message: str = ""
    last_transition_time: datetime | None = None
    observed_generation: int = 0


class Status(msgspec.Struct, frozen=True, rename="camel"):
    """What the operator reports."""

    phase: Phase | None = None
    pod_id: int | None = None
    """The pod that the link points to, while it is this PodLink's or adopted by it."""
    pod_name: str | None = None
    previous_pod_id: int | None = None
    owned: bool | None = None
    """False: the link was there before and is left alone on delete."""
    linked_at: datetime | None = None
    expires_at: datetime | None = None
    observed_generation: int | None = None
    conditions: tuple[Condition, ...] = ()

    @property
    def ready(self) -> Condition:
        """The condition `Ready`; an unknown one before the first report."""
        return next((condition for condition in self.conditions if condition.type == "Ready"), Condition())

    @property
    def reason(self) -> str:
        """The reason of the condition `Ready`."""
        return self.ready.reason

    def to_json(self) -> dict[str, Any]:
        """Return the status as a merge patch body: fields without a value are null, so that they are removed."""
        encoded: dict[str, Any] = msgspec.to_builtins(self, builtin_types=(datetime,))
        for name in ("linkedAt", "expiresAt"):
            encoded[name] = _rfc3339(encoded[name])
        for condition in encoded["conditions"]:
            condition["lastTransitionTime"] = _rfc3339(condition["lastTransitionTime"])
        return encoded


def _rfc3339(moment: datetime | None) -> str | None:
    # Kubernetes' own clients refuse fractions of a second in a metav1.Time.
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class PodLink(msgspec.Struct, frozen=True):
    """One PodLink object at one resourceVersion."""

    namespace: str
    name: str
    uid: str
    """metadata.uid of the object; the user's uid is `spec.uid`."""
    version: int
    generation: int
    created: str
    deleting: bool
    finalizers: tuple[str, ...]
    spec: Spec
    status: Status
    foreign_conditions: tuple[Mapping[str, Any], ...] = ()
    """Conditions of other controllers, as they are in the object."""

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, name)."""
        return self.namespace, self.name

    @property
    def link_key(self) -> tuple[str, str, str]:
        """(namespace, uid, service): the one link in Redis that this object is about."""
        return self.namespace, self.spec.uid, self.spec.service

    @property
    def age_key(self) -> tuple[str, str]:
        """Orders PodLinks by age, oldest first; the same for every observer."""
        return self.created, self.uid

    @property
    def has_finalizer(self) -> bool:
        """Whether deletion waits for us."""
        return FINALIZER in self.finalizers

    @property
    def edited(self) -> bool:
        """Whether the spec changed since the last report."""
        observed = self.status.observed_generation
        # The API server counts the start of a deletion as one change more.
        return observed is None or self.generation - observed > self.deleting

    @property
    def settled(self) -> bool:
        """Whether it reached a phase that only an edit leads out of; such a PodLink holds no link."""
        return self.status.phase in TERMINAL and not self.edited

    def status_patch(self, status: Status) -> dict[str, Any]:
        """Return the body of a merge patch that reports a status, and keeps the conditions of other controllers.

        A merge patch replaces the whole list of conditions.
        """
        body = status.to_json()
        body["conditions"] += self.foreign_conditions
        return body


def read_podlink(body: Mapping[str, Any]) -> PodLink:
    """Read a PodLink object.

    Raises:
        InvalidPodLinkError: it isn't what the CRD allows (written before the CRD was tightened); the text names the
            field.
    """
    metadata = body["metadata"]
    try:
        spec = msgspec.convert(dict(body.get("spec") or {}), Spec)
        reported = dict(body.get("status") or {})
        conditions = reported.pop("conditions", None) or ()
        ours = [condition for condition in conditions if condition.get("type") == Condition().type]
        status = msgspec.convert(reported | {"conditions": ours}, Status)
    except msgspec.ValidationError as error:
        raise InvalidPodLinkError(f"{error}; apply it again with that field corrected") from error
    return PodLink(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        version=int(metadata["resourceVersion"]),
        generation=metadata.get("generation", 1),
        created=metadata["creationTimestamp"],
        deleting=bool(metadata.get("deletionTimestamp")),
        finalizers=tuple(metadata.get("finalizers") or ()),
        spec=spec,
        status=status,
        foreign_conditions=tuple(condition for condition in conditions if condition not in ours),
    )
