"""The operator's picture of the cluster: every pod and StatefulSet it was told of, by service.

Watch events and LISTs arrive in any order; the resourceVersion of an object decides which word is the last.
Nothing here does I/O, and nothing is derived twice: what a service looks like is put together by
`services.view_service` whenever somebody asks.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

from podlink.domain.services import ServiceView, view_service
from podlink.domain.workloads import Pod, Workload

ServiceKey = tuple[str, str]
"""(namespace, service)"""

Fact = Pod | Workload


class Inventory:
    """Pods and StatefulSets by uid and by service, newest version of each."""

    def __init__(self) -> None:
        self._facts: dict[str, Fact] = {}
        self._by_service: defaultdict[ServiceKey, set[str]] = defaultdict(set)
        self._deleted: dict[str, int] = {}

    def observe(self, fact: Fact) -> set[ServiceKey]:
        """Take in an object as it is now; return the services whose picture changed.

        An object that moved from one service to another (its label was edited) changes both.
        """
        known = self._facts.get(fact.uid)
        newest = known.version if known is not None else self._deleted.get(fact.uid, -1)
        if fact.version <= newest:
            return set()
        changed = self._drop(fact.uid)
        self._facts[fact.uid] = fact
        self._by_service[fact.namespace, fact.service].add(fact.uid)
        return changed | {(fact.namespace, fact.service)}

    def forget(self, uid: str, version: int) -> set[ServiceKey]:
        """Take in that an object is gone since the given resourceVersion; return the services that changed.

        Gone is also what belongs to no service any more, so that there may be newer word of it already.
        """
        known = self._facts.get(uid)
        if known is not None and known.version > version:
            return set()
        self._deleted[uid] = max(version, self._deleted.get(uid, -1))
        return self._drop(uid)

    def replace(
        self, facts: Collection[Pod] | Collection[Workload], kind: type[Fact], version: int, namespace: str | None
    ) -> set[ServiceKey]:
        """Take in a whole LIST of one kind, made at the given resourceVersion; return the services that changed.

        What the LIST does not have is gone, unless it is newer than the LIST. This is how deletions are
        noticed that no watch reported.
        """
        listed = {fact.uid for fact in facts}
        gone = [
            fact
            for fact in self._facts.values()
            if isinstance(fact, kind)
            and fact.uid not in listed
            and fact.version <= version
            and namespace in (None, fact.namespace)
        ]
        changed: set[ServiceKey] = set()
        for fact in gone:
            changed |= self.forget(fact.uid, version)
        for fact in facts:
            changed |= self.observe(fact)
        return changed

    def expire_deletions(self, version: int) -> None:
        """Drop the memory of deletions that no LIST still to come can contradict."""
        self._deleted = {uid: deleted for uid, deleted in self._deleted.items() if deleted > version}

    def view(self, namespace: str, service: str) -> ServiceView:
        """Return the service as it is known now; an unknown service is an empty view."""
        facts = self._facts_of((namespace, service))
        pods, workloads = [], []
        for fact in facts:
            if isinstance(fact, Pod):
                pods.append(fact)
            else:
                workloads.append(fact)
        return view_service(namespace, service, pods, workloads)

    def version_of(self, uid: str) -> int:
        """Return the newest version heard of an object, be it there or gone; 0 when nothing was heard lately."""
        fact = self._facts.get(uid)
        return fact.version if fact is not None else self._deleted.get(uid, 0)

    def services(self) -> list[ServiceKey]:
        """All services that something in the cluster stands for."""
        return list(self._by_service)

    def _facts_of(self, key: ServiceKey) -> Iterator[Fact]:
        uids: Iterable[str] = self._by_service.get(key, ())
        return (self._facts[uid] for uid in uids)

    def _drop(self, uid: str) -> set[ServiceKey]:
        fact = self._facts.pop(uid, None)
        if fact is None:
            return set()
        key = (fact.namespace, fact.service)
        members = self._by_service[key]
        members.discard(uid)
        if not members:
            del self._by_service[key]
        return {key}

    def newest_version(self, kind: type[Fact]) -> int:
        """The highest resourceVersion seen of one kind; 0 before the first."""
        return max((fact.version for fact in self._facts.values() if isinstance(fact, kind)), default=0)

    def clear(self) -> None:
        """Forget everything, because the cluster's versions started anew (its etcd was restored or replaced)."""
        self._facts.clear()
        self._by_service.clear()
        self._deleted.clear()
