"""A small world to walk about in: Redis, the API server and the cluster in memory, and an operator that may crash.

Redis does what the scripts are documented to do and remembers who made the link. The operator gathers facts, asks
`decide`, acts and reports in the order of the real one; it uses the real registry to know whom to look at next.
"""

from __future__ import annotations

import copy
import heapq
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

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
    redis_unavailable,
)
from podlink.domain.podlinks import FINALIZER, Policy, read_podlink
from podlink.domain.registry import PodLinks
from podlink.domain.services import ServiceView, view_service
from podlink.domain.states import PodState
from unit.builders import NOW, NS, SVC, UID, make_pod, make_workload

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from podlink.domain.podlinks import PodLink, Status

MAX_STEPS = 5
OTHERS = "others"
EITHER = "either"
"""Two made the same link; nobody can tell whose it is."""


class CrashError(Exception):
    """The operator's process ended here."""


class UnsettledError(AssertionError):
    """Asked again and again, `decide` never came to a report."""


@dataclass
class Redis:
    """One link in Redis: its string, its field in the uid's hash, and who made it."""

    expires_fields: bool = True
    """False: a server on which the field of an expired link stays until somebody reads the hash."""
    now_ms: int = 0
    pod: int | None = None
    ends: int | None = None
    listed: int | None = None
    author: str | None = None
    routable: list[int] = field(default_factory=list)
    """What the state hash says; may lag behind the cluster."""

    def expire(self) -> None:
        if self.ends is not None and self.ends <= self.now_ms:
            self.pod = self.ends = self.author = None
            if self.expires_fields:
                self.listed = None

    def record(self) -> LinkRecord:
        self.expire()
        return LinkRecord(self.pod, None if self.ends is None else self.ends - self.now_ms, self.listed)

    def set(self, pod: int, persist: int, author: str) -> None:
        self.expire()
        # Setting what somebody set already leaves no trace of who it was.
        same = self.pod == pod and self.author not in (None, author)
        self.author = EITHER if same else author
        self.pod, self.listed = pod, pod
        self.ends = None if persist < 0 else self.now_ms + persist * 1000

    def try_set(self, pod: int, persist: int, expected: int | None, author: str) -> None:
        self.expire()
        if self.pod is None or self.ends is not None or self.pod in (pod, expected):
            self.set(pod, persist, author)

    def set_if_absent(self, pod: int, persist: int, author: str) -> None:
        self.expire()
        if self.pod is None:
            self.set(pod, persist, author)

    def compute_if_absent(self, persist: int, author: str) -> None:
        self.expire()
        if self.pod is None and self.routable:
            self.set(self.routable[self.now_ms // 1000 % len(self.routable)], persist, author)

    def remove(self, pod: int, persist: int) -> None:
        self.expire()
        if self.pod not in (None, pod):
            return
        self.listed = None
        if self.pod is not None and persist > 0:
            self.ends = self.now_ms + persist * 1000
        else:
            self.pod = self.ends = self.author = None

    def wipe(self) -> None:
        self.pod = self.ends = self.listed = self.author = None

    def apply(self, action: Action, author: str) -> None:
        match action:
            case SetLink(Write.SET, pod, persist):
                self.set(pod, persist, author)
            case SetLink(Write.IF_ABSENT, pod, persist):
                self.set_if_absent(pod, persist, author)
            case SetLink(Write.TRY_SET, pod, persist, expected):
                self.try_set(pod, persist, expected, author)
            case PickPod(persist, instead_of):
                if instead_of is not None:
                    self.remove(instead_of, 0)
                self.compute_if_absent(persist, author)
            case ReleaseLink(pod, persist):
                self.remove(pod, persist)


class ApiServer:
    """PodLink objects as JSON, with versions, generations and finalizers."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.version = 10
        self.patches = 0

    def _next_version(self) -> str:
        self.version += 1
        return str(self.version)

    def create(self, name: str, spec: dict[str, Any]) -> None:
        # All in the same second: which one is older is then a matter of the uid.
        self.objects[name] = {
            "metadata": {
                "namespace": NS,
                "name": name,
                "uid": f"{name}-{self.version}",
                "resourceVersion": self._next_version(),
                "generation": 1,
                "creationTimestamp": "2024-02-01T00:00:00Z",
                "finalizers": [FINALIZER],
            },
            "spec": {"uid": UID, "service": SVC, **spec},
        }

    def body(self, name: str) -> dict[str, Any]:
        return copy.deepcopy(self.objects[name])

    def read(self, name: str) -> PodLink:
        return read_podlink(self.body(name))

    def edit(self, name: str, change: dict[str, Any]) -> None:
        body = self.objects[name]
        spec = {key: value for key, value in (body["spec"] | change).items() if value is not None}
        if spec != body["spec"]:
            body["spec"] = spec
            body["metadata"]["generation"] += 1
            body["metadata"]["resourceVersion"] = self._next_version()

    def delete(self, name: str) -> None:
        metadata = self.objects[name]["metadata"]
        if "deletionTimestamp" not in metadata:
            metadata["deletionTimestamp"] = "2024-05-01T12:00:00Z"
            # The API server counts the start of a deletion as a change of the desired state.
            metadata["generation"] += 1
            metadata["resourceVersion"] = self._next_version()

    def patch_status(self, name: str, status: dict[str, Any]) -> None:
        body = self.objects[name]
        merged = {key: value for key, value in (body.get("status", {}) | status).items() if value is not None}
        if merged != body.get("status", {}):
            self.patches += 1
            body["status"] = merged
            body["metadata"]["resourceVersion"] = self._next_version()

    def set_finalizers(self, name: str, finalizers: list[str]) -> dict[str, Any]:
        """Change the finalizers; a deleted object is gone with the last of them. Returns the object as it is then."""
        metadata = self.objects[name]["metadata"]
        metadata |= {"finalizers": finalizers, "resourceVersion": self._next_version()}
        body = self.body(name)
        if "deletionTimestamp" in metadata and not finalizers:
            del self.objects[name]
        return body


class World:
    """Everything, with an operator that is told of every change of objects and of none in Redis."""

    def __init__(self, *, expires_fields: bool = True) -> None:
        self.redis = Redis(expires_fields)
        self.api = ApiServer()
        self.pods: dict[int, PodState] = {}
        self.replicas: int | None = None
        self.registry = PodLinks()
        self.queue: list[str] = []
        self.wakes: list[tuple[datetime, str]] = []
        self.unreported: set[str] = set()
        """PodLinks that wrote something and crashed before they could say so."""
        self.meddle: Callable[[], None] | None = None
        """What another client does between the operator's next look at Redis and its write."""
        self.check: Callable[[PodLink, Facts, Redis, Redis], None] = lambda *_: None
        """Called after each action with what led to it, and Redis just before and just after it."""
        self.looks = 0

    @property
    def now(self) -> datetime:
        return NOW + timedelta(milliseconds=self.redis.now_ms)

    @property
    def service(self) -> ServiceView:
        pods = [make_pod(pod_id, state) for pod_id, state in self.pods.items()]
        return view_service(NS, SVC, pods, [] if self.replicas is None else [make_workload(self.replicas)])

    def pass_time(self, milliseconds: int) -> None:
        self.redis.now_ms += milliseconds
        self.redis.expire()

    def write_states(self) -> None:
        """The state writer has caught up."""
        self.redis.routable = self.service.ready

    def restart(self) -> None:
        """A new process: it knows nothing but what the LISTs tell."""
        self.registry = PodLinks()
        self.wakes.clear()
        self.queue.clear()
        self.meddle = None
        for name in self.api.objects:
            self._look_at(self.registry.observe(self.api.read(name)))
            self._look_at({(NS, name)})

    def notice(self, name: str) -> None:
        """The watch tells of an object."""
        self._look_at(self.registry.observe(self.api.read(name)))

    def _look_at(self, keys: set[tuple[str, str]]) -> None:
        self.queue += sorted(name for _, name in keys if name not in self.queue)

    def facts(self, link: PodLink, *, acted: bool = False, replaced: int | None = None) -> Facts:
        return Facts(
            link=link,
            record=self.redis.record(),
            service=self.service,
            holder=self.registry.holder(link),
            now=self.now,
            acted=acted,
            replaced=replaced,
        )

    def reconcile(self, name: str, *, crash_before: int | None = None) -> None:
        """Look at one PodLink; with `crash_before`, end before the so-manieth write to Redis or the API server."""
        link = self.registry.get((NS, name))
        if link is None:
            return
        self.looks += 1
        writes = 0

        def write(what: Callable[[], None]) -> None:
            nonlocal writes
            if writes == crash_before:
                raise CrashError
            writes += 1
            what()

        acted, replaced = False, None
        for _ in range(MAX_STEPS):
            facts = self.facts(link, acted=acted, replaced=replaced)
            decision = decide(facts)
            action = decision.action
            if action is None:
                self._conclude(link, decision, write)
                return
            if isinstance(action, Intend):
                announced = action.status
                write(lambda status=announced: self._report(name, status))
                link = self.api.read(name)
                continue
            if not acted:
                acted, replaced = True, facts.record.pod_id
            write(lambda link=link, facts=facts, action=action: self._act(link, facts, action))
        raise UnsettledError(f"{name}: {action}")

    def _act(self, link: PodLink, facts: Facts, action: Action) -> None:
        meddle, self.meddle = self.meddle, None
        if meddle is not None:
            meddle()
        self.unreported.add(link.name)
        before = copy.copy(self.redis)
        before.expire()
        self.redis.apply(action, link.name)
        self.check(link, facts, before, self.redis)

    def _report(self, name: str, status: Status) -> None:
        self.api.patch_status(name, status.to_json())
        self._look_at({key for key in self.registry.observe(self.api.read(name)) if key != (NS, name)})

    def _conclude(self, link: PodLink, decision: Decision, write: Callable[[Callable[[], None]], None]) -> None:
        if decision.finalize:
            write(lambda: self._finalize(link))
            return
        if decision.wake_at is not None:
            assert decision.wake_at > self.now, "asks to be woken in the past"
            heapq.heappush(self.wakes, (decision.wake_at, link.name))
        status = decision.status
        assert status is not None
        if status != link.status:
            write(lambda: self._report(link.name, status))
        self.unreported.discard(link.name)
        if status.owned and self.redis.author == OTHERS and link.spec.policy is not Policy.IF_ABSENT:
            # Under these policies a link that is as declared belongs to the PodLink, whoever wrote it.
            self.redis.author = link.name

    def _finalize(self, link: PodLink) -> None:
        self.api.set_finalizers(link.name, [])
        self.unreported.discard(link.name)
        self._look_at(self.registry.forget(link.key, link.uid, self.api.version))

    def report_outage(self, name: str) -> None:
        link = self.registry.get((NS, name))
        if link is not None and (link.edited or link.deleting):
            self._report(name, redis_unavailable(link, self.now))

    def drain(self, limit: int) -> None:
        """Look at everything that asks for it now."""
        for _ in range(limit):
            if not self.queue:
                return
            self.reconcile(self.queue.pop(0))
        raise UnsettledError(f"still in the queue after {limit} looks: {self.queue}")

    def run_for(self, seconds: float, limit: int) -> None:
        """Let the operator work, with its alarm clocks."""
        end = self.now + timedelta(seconds=seconds)
        self.drain(limit)
        while self.wakes and self.wakes[0][0] <= end:
            due, name = heapq.heappop(self.wakes)
            self.pass_time(max(0, -((self.now - due) // timedelta(milliseconds=1))))
            if name not in self.queue:
                self.queue.append(name)
            self.drain(limit)
