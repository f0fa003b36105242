"""The contract of the executor in plain Python: what each method does to the link map, and what it returns.

It is written from the contract, not from the scripts: one clock, one dictionary of links, and the keys that follow from
them. Whatever the executor tells and whatever is in Redis is held against it. It writes down the names of the keys
itself, for they are part of the contract.

The clock is a number of seconds that moves only when told to.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

from podlink import Service

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

READY = "Ready"
FOREVER = -1
TOMBSTONE_SECONDS = 3600

BULKS = {
    "set_linked_pods": "set_linked_pod",
    "try_set_linked_pods": "try_set_linked_pod",
    "set_linked_pods_if_absent": "set_linked_pod_if_absent",
    "compute_linked_pods_if_absent": "compute_linked_pod_if_absent",
    "remove_linked_pods": "remove_linked_pod",
    "remove_linked_pods_with_id": "remove_linked_pod_with_id",
}
"""Bulk methods that write, and the method that does the same for one uid."""

Facts: TypeAlias = "dict[tuple[str, str], tuple[str, float | None]]"
"""What is in Redis: (key, field or member) -> (value, seconds it has still to live). A string has the field ""."""


class LinkName(NamedTuple):
    namespace: str
    uid: str
    service: str

    @property
    def hash_key(self) -> str:
        return f"sf:{{{self.namespace}:lk:{self.uid}}}"

    @property
    def key(self) -> str:
        return self.hash_key + self.service


class ServiceName(NamedTuple):
    namespace: str
    service: str

    @property
    def state_key(self) -> str:
        return f"sf:{{{self.namespace}:state:{self.service}}}"

    @property
    def workload_key(self) -> str:
        return f"sf:{{{self.namespace}:workload:{self.service}}}"


@dataclass(frozen=True, slots=True)
class Link:
    """A link that can be found.

    Attributes:
        pod: its podId.
        ends: on the model's clock; None for a permanent link.
        listed: False in the reconnect window: it can be found, but is neither listed nor a load.
    """

    pod: int
    ends: int | None
    listed: bool = True


@dataclass(frozen=True, slots=True)
class Call:
    """A call of an executor's method, all arguments by name."""

    method: str
    arguments: Mapping[str, Any]

    def singles(self) -> list[tuple[str, Call]]:
        """What a bulk call stands for: each uid, and the call for it alone."""
        arguments = dict(self.arguments)
        pods = arguments.pop("pods", None)
        uids = list(dict.fromkeys(arguments.pop("uids", pods)))
        expected = arguments.pop("expected", None)
        calls = []
        for uid in uids:
            own: dict[str, Any] = {"uid": uid} | ({} if pods is None else {"pod_id": pods[uid]})
            if expected is not None:
                own["expected"] = expected.get(uid)
            calls.append((uid, Call(BULKS[self.method], arguments | own)))
        return calls

    def __repr__(self) -> str:
        return f"{self.method}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"


@dataclass(slots=True)
class Versions:
    """Versions that fence the states of one service (by podId) or of one workload (under None)."""

    of: dict[int | None, str] = field(default_factory=dict)
    ends: int | None = None

    def refuse(self, what: int | None, version: str | int | None) -> bool:
        return version is not None and int(self.of.get(what, "0")) > int(version)

    def store(self, what: int | None, version: str | int | None) -> None:
        if version is None:
            self.of.pop(what, None)
        else:
            self.of[what] = str(version)


class Model:
    """The link map, and the methods of the executor on it.

    Args:
        expires_fields: the server expires single fields of a hash; where it can't, the field of an expired link stays
            until its uid's links are listed.

    Attributes:
        any_ready: a pick may be any Ready pod, and not only one of the least loaded. So it is on a Cluster while other
            calls are under way, for there a link and the load it makes are two steps.

    A method returns what the executor has to return. Which of several equally loaded pods is picked is not in the
    contract, so it is taken from what the executor told (`after`).
    """

    def __init__(self, *, expires_fields: bool) -> None:
        self.expires_fields = expires_fields
        self.now = 0
        self.links: dict[LinkName, Link] = {}
        self.left_behind: dict[LinkName, int] = {}
        self.states: dict[ServiceName, dict[int, str]] = defaultdict(dict)
        self.workloads: dict[ServiceName, str] = {}
        self.versions: dict[ServiceName, Versions] = defaultdict(Versions)
        self.workload_versions: dict[ServiceName, Versions] = defaultdict(Versions)
        self.any_ready = False
        self._told: Any = None

    def after(self, call: Call, told: Any) -> Model | None:
        """The model behind a call that returned `told`; None when the contract does not allow that."""
        if call.method in BULKS:
            # Each link is atomic, all of them together are not: any order of them will do.
            singles = call.singles()
            if not isinstance(told, dict) or list(told) != [uid for uid, _ in singles]:
                return None
            return next(explanations(self, [(single, told[uid]) for uid, single in singles]), None)
        model = self._copy()
        model._told = told
        expected = getattr(model, call.method)(**call.arguments)
        return model if expected == told and type(expected) is type(told) else None

    def expected(self, call: Call) -> Any:
        """What a call would return now, for messages."""
        if call.method in BULKS:
            return {uid: self.expected(single) for uid, single in call.singles()}
        return getattr(self._copy(), call.method)(**call.arguments)

    def pass_time(self, seconds: int) -> None:
        self.now += seconds
        for name, link in list(self.links.items()):
            if link.ends is not None and link.ends <= self.now:
                del self.links[name]
                if link.listed and not self.expires_fields:
                    self.left_behind[name] = link.pod
        for versions in (*self.versions.values(), *self.workload_versions.values()):
            if versions.ends is not None and versions.ends <= self.now:
                versions.of.clear()
                versions.ends = None

    def loads(self, service: ServiceName) -> Counter[int]:
        """Links of each pod; a link in its reconnect window is no load."""
        return Counter(
            link.pod
            for name, link in self.links.items()
            if link.listed and (name.namespace, name.service) == (service.namespace, service.service)
        )

    def facts(self) -> Facts:
        """Everything that has to be in Redis, and nothing else may be."""
        return dict((*self._link_facts(), *self._state_facts()))

    def _link_facts(self) -> Iterator[tuple[tuple[str, str], tuple[str, float | None]]]:
        for name, link in self.links.items():
            left = self._left(link.ends)
            yield (name.key, ""), (str(link.pod), left)
            if link.listed:
                yield (name.hash_key, name.service), (str(link.pod), left if self.expires_fields else None)
                if link.ends is not None:
                    expiry = ServiceName(name.namespace, name.service).state_key + "exp"
                    yield (expiry, f"{link.pod} {name.key}"), ("", left)
        for name, pod in self.left_behind.items():
            yield (name.hash_key, name.service), (str(pod), None)
        for service in {ServiceName(name.namespace, name.service) for name in self.links}:
            for pod, links in self.loads(service).items():
                yield (service.state_key + "load", str(pod)), (str(links), None)

    def _state_facts(self) -> Iterator[tuple[tuple[str, str], tuple[str, float | None]]]:
        for service, states in self.states.items():
            for pod, state in states.items():
                yield (service.state_key, str(pod)), (state, None)
        for service, versions in self.versions.items():
            for pod_id, version in versions.of.items():
                yield (service.state_key + "rv", str(pod_id)), (version, self._left(versions.ends))
        for service, state in self.workloads.items():
            yield (service.workload_key, ""), (state, None)
        for service, versions in self.workload_versions.items():
            for version in versions.of.values():
                yield (service.workload_key + "rv", ""), (version, self._left(versions.ends))

    def _left(self, ends: int | None) -> int | None:
        return None if ends is None else ends - self.now

    def _copy(self) -> Self:
        twin = type(self)(expires_fields=self.expires_fields)
        twin.now, twin.any_ready = self.now, self.any_ready
        twin.links.update(self.links)
        twin.left_behind.update(self.left_behind)
        twin.workloads.update(self.workloads)
        twin.states.update((service, dict(states)) for service, states in self.states.items())
        for ours, theirs in ((twin.versions, self.versions), (twin.workload_versions, self.workload_versions)):
            ours.update((service, replace(versions, of=dict(versions.of))) for service, versions in theirs.items())
        return twin

    # States.

    def set_service_state(
        self, namespace: str, service: str, pod_id: int, state: str, *, version: str | int | None = None
    ) -> bool:
        name = ServiceName(namespace, service)
        states, versions = self.states[name], self.versions[name]
        if versions.refuse(pod_id, version):
            return False
        states.pop(pod_id, None)
        if state:
            states[pod_id] = state
        versions.store(pod_id, version)
        versions.ends = self.now + TOMBSTONE_SECONDS if versions.of and not states else None
        return True

    def get_service_state(self, namespace: str, service: str) -> dict[int, str]:
        return dict(self.states[ServiceName(namespace, service)])

    def get_service(self, namespace: str, service: str) -> Service:
        name = ServiceName(namespace, service)
        states = self.get_service_state(namespace, service)
        return Service(states, dict.fromkeys(states, 0) | self.loads(name))

    def set_workload_state(self, namespace: str, service: str, state: str, *, version: str | int | None = None) -> bool:
        name = ServiceName(namespace, service)
        versions = self.workload_versions[name]
        if versions.refuse(None, version):
            return False
        self.workloads.pop(name, None)
        if state:
            self.workloads[name] = state
        versions.store(None, version)
        versions.ends = self.now + TOMBSTONE_SECONDS if versions.of and not state else None
        return True

    def get_workload_state(self, namespace: str, service: str) -> str | None:
        return self.workloads.get(ServiceName(namespace, service))

    def get_workload_states(self, namespace: str, services: Iterable[str]) -> dict[str, str]:
        return {each: state for each in services if (state := self.get_workload_state(namespace, each)) is not None}

    # Links.

    def set_linked_pod(
        self, namespace: str, uid: str, service: str, pod_id: int, *, persist_seconds: int = FOREVER
    ) -> int | None:
        previous = self.get_linked_pod(namespace, uid, service)
        self._link(LinkName(namespace, uid, service), pod_id, persist_seconds)
        return previous

    def try_set_linked_pod(
        self,
        namespace: str,
        uid: str,
        service: str,
        pod_id: int,
        *,
        persist_seconds: int = FOREVER,
        expected: int | None = None,
    ) -> tuple[bool, int]:
        held = self.get_linked_pod_if_persist(namespace, uid, service)
        if held is not None and held not in (pod_id, expected):
            return False, held
        self._link(LinkName(namespace, uid, service), pod_id, persist_seconds)
        return True, pod_id

    def set_linked_pod_if_absent(
        self, namespace: str, uid: str, service: str, pod_id: int, *, persist_seconds: int = FOREVER
    ) -> int:
        found = self.get_linked_pod(namespace, uid, service)
        if found is not None:
            return found
        self._link(LinkName(namespace, uid, service), pod_id, persist_seconds)
        return pod_id

    def compute_linked_pod_if_absent(
        self, namespace: str, uid: str, service: str, *, persist_seconds: int = FOREVER
    ) -> int | None:
        found = self.get_linked_pod(namespace, uid, service)
        if found is not None:
            return found
        name = ServiceName(namespace, service)
        loads = self.loads(name)
        routable = {pod: loads[pod] for pod, state in self.states[name].items() if state == READY}
        least = [pod for pod, load in routable.items() if self.any_ready or load == min(routable.values())]
        if not least:
            return None
        pod = self._told if self._told in least else least[0]
        self._link(LinkName(namespace, uid, service), pod, persist_seconds)
        return pod

    def get_linked_pod(self, namespace: str, uid: str, service: str) -> int | None:
        link = self.links.get(LinkName(namespace, uid, service))
        return None if link is None else link.pod

    def get_linked_pod_if_persist(self, namespace: str, uid: str, service: str) -> int | None:
        link = self.links.get(LinkName(namespace, uid, service))
        return None if link is None or link.ends is not None else link.pod

    def get_linked_pods(self, namespace: str, uids: Iterable[str], service: str) -> dict[int, list[str]]:
        uids_of = defaultdict(list)
        for uid in dict.fromkeys(uids):
            pod = self.get_linked_pod(namespace, uid, service)
            if pod is not None:
                uids_of[pod].append(uid)
        return dict(uids_of)

    def remove_linked_pod(self, namespace: str, uid: str, service: str, *, persist_seconds: int = 0) -> bool:
        name = LinkName(namespace, uid, service)
        self.left_behind.pop(name, None)
        link = self.links.pop(name, None)
        if link is not None and persist_seconds:
            self.links[name] = Link(link.pod, self.now + persist_seconds, listed=False)
        return link is not None

    def remove_linked_pod_with_id(
        self, namespace: str, uid: str, service: str, pod_id: int, *, persist_seconds: int = 0
    ) -> bool:
        if self.get_linked_pod(namespace, uid, service) not in (None, pod_id):
            return False
        return self.remove_linked_pod(namespace, uid, service, persist_seconds=persist_seconds)

    def get_linked_services(self, namespace: str, uid: str) -> dict[str, int]:
        for name in [name for name in self.left_behind if name[:2] == (namespace, uid)]:
            del self.left_behind[name]
        return {
            name.service: link.pod for name, link in self.links.items() if name[:2] == (namespace, uid) and link.listed
        }

    def _link(self, name: LinkName, pod: int, persist_seconds: int) -> None:
        self.left_behind.pop(name, None)
        self.links[name] = Link(pod, None if persist_seconds == FOREVER else self.now + persist_seconds)


def explanations(model: Model, answered: Sequence[tuple[Call, Any]]) -> Iterator[Model]:
    """The models to which some order of the calls leads that allows all their results; none: there is no such order."""
    if not answered:
        yield model
    for n, (call, told) in enumerate(answered):
        after = model.after(call, told)
        if after is not None:
            yield from explanations(after, [*answered[:n], *answered[n + 1 :]])
