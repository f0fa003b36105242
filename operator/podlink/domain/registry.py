"""All PodLinks the operator knows, and the questions that are asked of them together.

Who holds a link when several declare it, and whom does a change concern: both are answered from indexes, so that
no event makes the operator walk over all objects.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any

from podlink.domain.decide import interests
from podlink.domain.inventory import ServiceKey
from podlink.domain.podlinks import PodLink
from podlink.domain.services import ServiceView

ObjectKey = tuple[str, str]
"""(namespace, name)"""


class PodLinks:
    """PodLinks by name, by the link they declare, and by the pods that concern them."""

    def __init__(self) -> None:
        self._links: dict[ObjectKey, PodLink] = {}
        self._rivals: defaultdict[tuple[str, str, str], set[ObjectKey]] = defaultdict(set)
        self._interested: defaultdict[ServiceKey, defaultdict[int | None, set[ObjectKey]]] = defaultdict(
            lambda: defaultdict(set)
        )
        self._deleted: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[PodLink]:
        return iter(list(self._links.values()))

    def get(self, key: ObjectKey) -> PodLink | None:
        """Return the PodLink of that name, as of the newest version seen."""
        return self._links.get(key)

    def observe(self, link: PodLink) -> set[ObjectKey]:
        """Take in a PodLink as it is now; return the PodLinks to look at again, itself included.

        A version that is not newer than the known one concerns nobody: our own writes come back as watch events.
        """
        known = self._links.get(link.key)
        newest = known.version if known is not None else self._deleted.get(link.uid, -1)
        if link.version <= newest:
            return set()
        changed = {link.key}
        if known is None or known.uid != link.uid:
            changed |= self._rivals_of(link)
        if known is not None:
            gave_up = known.status.pod_id is not None and link.status.pod_id is None
            if known.uid != link.uid or _claims(known) != _claims(link) or gave_up:
                changed |= self._rivals_of(known)
            self._unindex(known)
        self._links[link.key] = link
        self._rivals[link.link_key].add(link.key)
        for pod_id in interests(link):
            self._interested[link.namespace, link.spec.service][pod_id].add(link.key)
        return changed

    def forget(self, key: ObjectKey, uid: str, version: int) -> set[ObjectKey]:
        """Take in that an object is gone since that version; return the PodLinks that may take its place."""
        self._deleted[uid] = max(version, self._deleted.get(uid, -1))
        link = self._links.get(key)
        if link is None or link.uid != uid:
            return set()
        del self._links[key]
        self._unindex(link)
        return self._rivals_of(link)

    def replace(self, links: Collection[PodLink], version: int, namespace: str | None) -> set[ObjectKey]:
        """Take in a whole LIST made at that resourceVersion; return the PodLinks to look at again."""
        listed = {link.uid for link in links}
        changed: set[ObjectKey] = set()
        for link in list(self._links.values()):
            if link.uid not in listed and link.version <= version and namespace in (None, link.namespace):
                changed |= self.forget(link.key, link.uid, version)
        for link in links:
            changed |= self.observe(link)
        return changed

    def expire_deletions(self, version: int) -> None:
        """Drop the memory of deletions that no LIST still to come can contradict."""
        self._deleted = {uid: deleted for uid, deleted in self._deleted.items() if deleted > version}

    def clear(self) -> None:
        """Forget everything, because the cluster's versions started anew."""
        self._links.clear()
        self._rivals.clear()
        self._interested.clear()
        self._deleted.clear()

    @property
    def newest_version(self) -> int:
        """The highest resourceVersion seen; 0 before the first."""
        return max((link.version for link in self._links.values()), default=0)

    def holder(self, link: PodLink) -> PodLink | None:
        """Return the older PodLink that has the first claim on the same uid and service."""
        older = (self._links[key] for key in self._rivals_of(link))
        claims = [other for other in older if _claims(other) and other.age_key < link.age_key]
        return min(claims, key=lambda other: other.age_key, default=None)

    def concerned(self, before: ServiceView | None, after: ServiceView) -> set[ObjectKey]:
        """Return the PodLinks that a change of a service concerns."""
        by_pod = self._interested.get((after.namespace, after.name))
        if not by_pod:
            return set()
        concerned: set[ObjectKey] = set()
        for pod_id, keys in by_pod.items():
            if before is None or _differs(before, after, pod_id):
                concerned |= keys
        return concerned

    def _rivals_of(self, link: PodLink) -> set[ObjectKey]:
        return {key for key in self._rivals.get(link.link_key, ()) if key != link.key}

    def _unindex(self, link: PodLink) -> None:
        _discard(self._rivals, link.link_key, link.key)
        service = link.namespace, link.spec.service
        for pod_id in interests(link):
            _discard(self._interested[service], pod_id, link.key)
        if not self._interested[service]:
            del self._interested[service]


def _claims(link: PodLink) -> bool:
    """Whether a PodLink has a link, or may get one."""
    released = link.deleting and not link.has_finalizer
    return not link.settled and not released


def _differs(before: ServiceView, after: ServiceView, pod_id: int | None) -> bool:
    if pod_id is None:
        return not set(after.ready) <= set(before.ready) or before.exists != after.exists
    return _answers(before, pod_id) != _answers(after, pod_id)


def _answers(view: ServiceView, pod_id: int) -> tuple[object, ...]:
    return view.exists, view.has(pod_id), view.lost(pod_id), view.pod_name(pod_id)


def _discard(index: dict[Any, set[ObjectKey]], key: object, member: ObjectKey) -> None:
    members = index[key]
    members.discard(member)
    if not members:
        del index[key]
