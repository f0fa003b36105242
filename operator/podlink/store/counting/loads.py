"""One recount, from its first walk to its repairs; why it is done like this says the package."""

import asyncio
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from podlink.domain import keys
from podlink.domain.errors import PodLinkError
from podlink.domain.keys import ServiceName, Uid
from podlink.store.aio.executor import StatefulExecutor
from podlink.store.counting import operations
from podlink.store.counting.inquiry import Inquiry, Pace, Spend
from podlink.store.counting.members import Members
from podlink.store.counting.operations import Link
from podlink.store.counting.scan import walk
from podlink.store.counting.tally import Tally
from podlink.store.options import DEFAULT_TIMEOUT_SECONDS

PAUSE_SECONDS: Final = DEFAULT_TIMEOUT_SECONDS + 1
"""Default pause between two walks, and between two looks at a temporary link: longer than a call may take."""

WALKS: Final = 6
"""Walks before a load is repaired."""

SLICE_KEYS: Final = 100
"""Keys that the server looks at in one go; half of them, about, are hashes of uids that are then read."""

# Hashes of uids and of states end with a brace, keys that extend these with "load" or "exp". A glob has no alternation;
# this leaves out most strings of links, which are half of all keys.
_LAST_LETTER: Final = ":*[}dp]"

_SAMPLES_OF_A_PAUSE: Final = 8
_SAMPLES_OF_A_SLICE: Final = 4
_SERVICES_AT_ONCE: Final = 50
_SETTLING_CALLS: Final = 100


class Repair(NamedTuple):
    """A load that was wrong."""

    namespace: str
    service: str
    pod: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Recount:
    """What a recount looked at and did.

    Attributes:
        links: that the first walk found.
        services: with a key, or a link to them.
        walks: how many it took.
        loads: those that were repaired.
        members: how many units of temporary links were added, removed or dated anew.
        left_out: how many keys could not be read, because another client keeps something else there.
        reason: the first of these errors.
    """

    links: int
    services: int
    walks: int
    loads: tuple[Repair, ...]
    members: int
    left_out: int
    reason: PodLinkError | None


async def recount(
    executor: StatefulExecutor,
    namespaces: Collection[str] = (),
    *,
    spend: Spend | None = None,
    pause_seconds: float = PAUSE_SECONDS,
) -> Recount:
    """Recount the loads of all services, and repair those that are wrong.

    On the way, fields of links whose string is gone are pruned.

    Args:
        executor: runs everything.
        namespaces: only these; empty for all.
        spend: bounds the rate; None for KEYS_PER_SECOND.
        pause_seconds: between two walks.

    Returns:
        What was looked at and repaired.

    Raises:
        InvalidArgument: an invalid namespace.
        RedisUnavailable: no answer; what was repaired until then is right.
        ScriptError: the server does not let us walk over its keys, or read the links in them.
    """
    plain = [keys.checked_namespace(namespace) for namespace in namespaces]
    return await _Recounting(Inquiry(executor, spend or Pace().spend), plain, pause_seconds).run()


class _Recounting:
    """One recount, from its first walk to its repairs."""

    def __init__(self, inquiry: Inquiry, namespaces: Collection[str], pause_seconds: float) -> None:
        self._inquiry = inquiry
        self._namespaces = frozenset(namespaces)
        self._pause_seconds = pause_seconds
        self._members = Members(inquiry, pause_seconds)
        self._tallies: dict[ServiceName, dict[int, Tally]] = {}
        self._walks = 0
        self._turn: deque[ServiceName] = deque()
        """Services in question, in the order in which their loads are read during a walk."""

    async def run(self) -> Recount:
        """Do all of it."""
        await self._walk()
        services = len(self._tallies)
        links = sum(tally.links for pods in self._tallies.values() for tally in pods.values())
        await self._mend_members()
        await self._read_loads(list(self._tallies), first=True)
        self._drop_what_may_be_right()
        while self._tallies and self._walks < WALKS:
            await self._pause()
            await self._walk()
            await self._read_loads(list(self._tallies))
            self._drop_what_may_be_right()
        repairs = await self._repair()
        inquiry = self._inquiry
        return Recount(links, services, self._walks, repairs, self._members.mended, inquiry.left_out, inquiry.reason)

    async def _walk(self) -> None:
        scope = next(iter(self._namespaces)) if len(self._namespaces) == 1 else None
        async for found in walk(self._inquiry.executor, scope, _LAST_LETTER, slice_keys=SLICE_KEYS):
            uids = {uid for key in found if (uid := keys.uid_of_key(key)) and self._concerns(uid.namespace)}
            links = await self._read_links(uids)
            if self._walks == 0:
                self._discover(found, links)
                await self._members.compare(links)
                await self._members.look_again()
            else:
                self._see(links)
                await self._read_some_loads()
            await self._inquiry.spend(SLICE_KEYS)
        self._walks += 1
        for pods in self._tallies.values():
            for tally in pods.values():
                tally.end_walk(first=self._walks == 1)
            await asyncio.sleep(0)  # millions of links must not hold up the probes

    def _concerns(self, namespace: str) -> bool:
        return not self._namespaces or namespace in self._namespaces

    async def _read_links(self, uids: Iterable[Uid]) -> list[Link]:
        # A key of another type holds no links. After any other error nobody knows how many there are: that is not 0.
        answers = await self._inquiry.ask([operations.read_links(uid) for uid in uids], only="WRONGTYPE")
        return [link for links in answers for link in links or ()]

    def _discover(self, found: Iterable[str], links: Iterable[Link]) -> None:
        for key in found:
            if (service := keys.service_of_key(key)) and self._concerns(service.namespace):
                self._tallies.setdefault(service, {})
        for link in links:
            pods = self._tallies.setdefault(ServiceName(link.namespace, link.service), {})
            pods.setdefault(link.pod, Tally()).see(link.uid)

    def _see(self, links: Iterable[Link]) -> None:
        for link in links:
            tally = self._tallies.get(ServiceName(link.namespace, link.service), {}).get(link.pod)
            if tally:
                tally.see(link.uid)

    async def _mend_members(self) -> None:
        for service in self._tallies:
            await self._members.audit(service)
            await self._members.look_again()
        while (seconds := self._members.ripen_seconds) is not None:
            await asyncio.sleep(seconds)
            await self._members.look_again()

    async def _read_loads(self, services: Sequence[ServiceName], *, first: bool = False) -> None:
        for start in range(0, len(services), _SERVICES_AT_ONCE):
            asked = list(services[start : start + _SERVICES_AT_ONCE])
            for _ in range(_SETTLING_CALLS):
                asked = await self._read_settled(asked, first=first)
                if not asked:
                    break
            for service in asked:
                # More links have ended than can be settled in passing. Those who link will settle them.
                del self._tallies[service]

    async def _read_settled(self, services: Sequence[ServiceName], *, first: bool) -> list[ServiceName]:
        """Read loads; return the services whose loads still count links that have ended."""
        await self._inquiry.ask([operations.settle(service) for service in services])
        answers = await self._inquiry.ask([operations.read_loads(service) for service in services])
        unsettled = []
        for service, loads in zip(services, answers, strict=True):
            if loads is None:
                del self._tallies[service]
            elif loads.due:
                unsettled.append(service)
            else:
                pods = self._tallies[service]
                if first:
                    pods.update((pod, Tally()) for pod in loads.by_pod.keys() - pods.keys())
                for pod, tally in pods.items():
                    tally.read(loads.by_pod.get(pod, 0))
        await self._inquiry.spend(len(services))
        return unsettled

    async def _read_some_loads(self) -> None:
        some = [self._turn[index] for index in range(min(_SAMPLES_OF_A_SLICE, len(self._turn)))]
        self._turn.rotate(-len(some))
        await self._read_loads([service for service in some if service in self._tallies])

    async def _pause(self) -> None:
        for _ in range(_SAMPLES_OF_A_PAUSE):
            await asyncio.sleep(self._pause_seconds / _SAMPLES_OF_A_PAUSE)
            await self._read_loads(list(self._tallies))
        self._turn = deque(self._tallies)

    def _drop_what_may_be_right(self) -> None:
        in_question = {
            service: {pod: tally for pod, tally in pods.items() if tally.bounds and tally.bounds.lacks}
            for service, pods in self._tallies.items()
        }
        self._tallies = {service: pods for service, pods in in_question.items() if pods}

    async def _repair(self) -> tuple[Repair, ...]:
        wanted = [
            (service, pod, bounds)
            for service, pods in self._tallies.items()
            for pod, tally in pods.items()
            if (bounds := tally.bounds)
        ]
        mended = await self._inquiry.ask([operations.mend_load(*each) for each in wanted])
        return tuple(
            Repair(*service, pod, *loads)
            for (service, pod, _), loads in zip(wanted, mended, strict=True)
            if loads and loads[0] != loads[1]
        )
