"""The recount: brings every pod's load to the number of links that it has.

A link counts for the pod its string names when its uid's hash lists the service and the string lives; one in its
reconnect window has no field, and counts nothing. Our clients book a link and its load in one step (on Redis Cluster
in two, a moment apart), so loads stay right by themselves. They go wrong where clients that know no loads write links,
where somebody dies between the two slots of Redis Cluster or with a reservation in hand, and where moves of one link
cross there.

Counting is the easy part. The walk over all keys takes seconds or minutes, and is no snapshot: a link that is made and
one that is removed meanwhile may both be seen, or neither. Setting a load to such a count would make right loads wrong,
in busy services always. So nothing is ever set to a count. What is wrong is taken as a difference, which stays the same
while our clients make and remove links and adjust the load with them, and which is safe to add whenever it has been
found. How large it is at the least is proved like this.

Temporary links can be compared one by one, because each has its unit of load in the expiry set: see `members`. That
comes first, during one walk.

Permanent links are but a sum. Several walks are made, and loads are read before, during and after each. Of one pod:

- a link that every walk saw there was there all the time in between (A), and one that no walk saw was not (B). So at
  any time in between, the pod had at least as many links as every walk saw, and at most as many as any walk saw.
- the load was read many times in between, and was at least its least and at most its greatest value.
- if the greatest load is below the least number of links, the load lacks at least the difference. If the least load is
  above the greatest number of links, it exceeds by at least the difference. Otherwise it may be right, and is left.

Where nothing happens, all walks see the same and the load stays the same: the difference is exact, and one recount
makes the load right. Where much happens, both brackets widen and the difference shrinks, down to nothing: what is
repaired is what the traffic cannot explain, and the rest waits for a quieter time. Where our clients alone write,
number and load are equal whenever a load is read, so neither can lie beyond the other's bracket, and right loads are
left alone. This is the double collect of the theory of atomic snapshots (Afek et al., 1993), with brackets instead of
equality.

What A and B leave out: a link that is removed and made again at the same pod between two walks is not A's (it lowers
the number for that moment), and one that lives between two looks is not B's. For either to mislead, the load must hide
it at each of dozens of readings: another link has to come or go at the same pod in that instant, every time, and all
WALKS walks must miss, or see, both of each pair. A pod whose one user changes uid in a single pipeline again and again
during the whole recount has a chance of about one in fifty to lose its one unit; the next recount returns it. With
more users, or any other order of events, the chance vanishes.

A walk that finds nothing to explain is the only one, and later walks look only at pods whose load is still in question.
Between two walks is a pause, so that all of them span more than the time-out of a call: a client of Redis Cluster that
has made a link and not yet booked it is not taken for one that died. A reservation that is held longer than that, with
no link made of it, counts as lost.

The repair is one step on the server, which takes the load of that very moment for one more reading. So where a load
stands still, two recounts at a time (of two operators) do no harm: the second finds it changed, and its bracket then
holds the repaired value. Where it does not, both may repair the same, and the next recount takes that back.

The server works on a slice for a millisecond or less, and pauses in between keep it free for others: see
KEYS_PER_SECOND. A recount can be cancelled at any time; each of its writes is whole by itself.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from podlink.domain import keys
from podlink.domain.errors import PodLinkError
from podlink.domain.keys import ServiceName, Uid
from podlink.store import recount_operations as operations
from podlink.store.executor import StatefulExecutor
from podlink.store.inquiry import Inquiry, Spend
from podlink.store.members import Members
from podlink.store.recount_operations import Link
from podlink.store.scan import walk
from podlink.store.tally import Tally

KEYS_PER_SECOND: Final = 5_000
"""Default rate. It takes 2 to 4 percent of a server's time, and three minutes for a walk over 500,000 links."""

PAUSE_SECONDS: Final = 2.5
"""Default pause between two walks; together they are longer than a call may take."""

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


class Pace:
    """Lets so many keys a second pass, evenly: a slice is paid for before the next one."""

    def __init__(
        self,
        keys_per_second: float = KEYS_PER_SECOND,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._seconds_a_key = 1 / keys_per_second
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()

    async def spend(self, count: int) -> None:
        """Return when the next key may be looked at."""
        now = self._clock()
        self._free_at = max(self._free_at, now) + count * self._seconds_a_key
        await self._sleep(self._free_at - now)


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
        ScriptError: the server does not let us walk over its keys.
    """
    for namespace in namespaces:
        keys.check_namespace(namespace)
    return await _Recounting(Inquiry(executor, spend or Pace().spend), namespaces, pause_seconds).run()


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
        answers = await self._inquiry.ask([operations.read_links(uid) for uid in uids])
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
