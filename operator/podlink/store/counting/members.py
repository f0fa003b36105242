"""The units of load that temporary links hold, compared one by one with the links.

A member of a service's expiry set is the unit of load of one temporary link: whoever takes the member away takes one
off the load as well, and at the score, which is the link's end, whoever reads the loads first does. So each can be
judged by its own link, however much is going on around it:

- a link without its member (another client made it, or died half way) gets one, and its pod one unit;
- a member without its link goes, and takes its unit along;
- a member whose link has become permanent goes, and the unit stays: it is the permanent link's now;
- a member with another end than its link is dated anew.

The two are in two hash slots, so they are read one after the other and may differ for a moment without fault. What
differs is therefore a doubt, looked at again some seconds later, when a client that was between the two has arrived.
Only what is then still exactly the same is mended: the same link (podId and end), and the same member (its score is
compared by the script that mends). With clients that write both in one step that is proof. A link that is the same
before and after the members were read was there when they were, and so are the members.
"""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from podlink.domain.keys import ServiceName, Uid
from podlink.store.counting import operations
from podlink.store.counting.inquiry import Inquiry
from podlink.store.counting.operations import PERMANENT, Link, Member
from podlink.store.operations import Operation

_SLICE_MEMBERS: Final = 50
_MENDED_AT_ONCE: Final = 50


class _Doubt(NamedTuple):
    """A member and a link that do not agree: what was read of them, and when (`time.monotonic`)."""

    member: Member
    score: float | None
    link: Link | None
    at: float


class Members:
    """Looks for members and links that do not agree, and mends them at the second look.

    Attributes:
        mended: how many were.
    """

    def __init__(self, inquiry: Inquiry, pause_seconds: float) -> None:
        """Look twice, with at least pause_seconds in between."""
        self._inquiry = inquiry
        self._pause_seconds = pause_seconds
        self._doubts: deque[_Doubt] = deque()
        self.mended = 0

    async def compare(self, links: Iterable[Link]) -> None:
        """Look for the members of links that were just read."""
        by_service: dict[ServiceName, dict[Member, Link]] = {}
        for link in links:
            if link.ends != PERMANENT:
                members = by_service.setdefault(ServiceName(link.namespace, link.service), {})
                members[Member(link.namespace, link.uid, link.service, link.pod)] = link
        # A member that has ended holds no unit any more, also where its link was made anew.
        await self._inquiry.ask([operations.settle(service) for service in by_service])
        reads = [operations.member_scores(service, members) for service, members in by_service.items()]
        for members, scores in zip(by_service.values(), await self._inquiry.ask(reads), strict=True):
            for member, score in zip(members, scores or (), strict=scores is not None):
                self._judge(member, score, members[member])

    async def audit(self, service: ServiceName) -> None:
        """Look for the links of all members of a service."""
        cursor = -1
        while cursor != 0:
            slice_ = operations.scan_members(service, max(cursor, 0), _SLICE_MEMBERS)
            # What has ended is settled first, so that it is not taken for a member without its link.
            _, answer = await self._inquiry.ask([operations.settle(service), slice_])
            if answer is None:
                return
            cursor, found = answer
            links = await self._read_links(found)
            for member, link in links.items():
                self._judge(member, found[member], link)
            await self._inquiry.spend(_SLICE_MEMBERS)

    async def look_again(self) -> None:
        """Look a second time at what has been in doubt for long enough."""
        ripe = time.monotonic() - self._pause_seconds
        while self._doubts and self._doubts[0].at <= ripe:
            doubts: list[_Doubt] = []
            while self._doubts and self._doubts[0].at <= ripe and len(doubts) < _MENDED_AT_ONCE:
                doubts.append(self._doubts.popleft())
            await self._mend(doubts)
            await self._inquiry.spend(len(doubts))

    @property
    def ripen_seconds(self) -> float | None:
        """When everything that is in doubt can be looked at again, from now; None when nothing is."""
        return max(0.0, self._doubts[-1].at + self._pause_seconds - time.monotonic()) if self._doubts else None

    def _judge(self, member: Member, score: float | None, link: Link | None) -> None:
        if score != _right(member, link):
            self._doubts.append(_Doubt(member, score, link, time.monotonic()))

    async def _mend(self, doubts: Sequence[_Doubt]) -> None:
        links = await self._read_links(doubt.member for doubt in doubts)
        doubts = [doubt for doubt in doubts if doubt.member in links and links[doubt.member] == doubt.link]
        services = {ServiceName(doubt.member.namespace, doubt.member.service) for doubt in doubts}
        await self._inquiry.ask([operations.settle(service) for service in services])
        answers = await self._inquiry.ask([_repair(doubt) for doubt in doubts])
        mended = [doubt for doubt, done in zip(doubts, answers, strict=True) if done]
        self.mended += len(mended)
        await self._take_back([doubt for doubt in mended if doubt.score is None])

    async def _take_back(self, added: Sequence[_Doubt]) -> None:
        """Undo what was added for a link that went in that very moment, and so left no member behind to be removed."""
        links = await self._read_links(doubt.member for doubt in added)
        gone = [doubt for doubt in added if links.get(doubt.member, doubt.link) != doubt.link]
        undo = [
            operations.mend_member(doubt.member, found=_right(doubt.member, doubt.link), right=None, unit=-1)
            for doubt in gone
        ]
        self.mended -= sum(map(bool, await self._inquiry.ask(undo)))

    async def _read_links(self, members: Iterable[Member]) -> dict[Member, Link | None]:
        """The link to which each member belongs, whatever pod it points at; left out where that cannot be read."""
        by_uid: dict[Uid, list[Member]] = {}
        for member in members:
            by_uid.setdefault(Uid(member.namespace, member.uid), []).append(member)
        answers = await self._inquiry.ask([operations.read_links(uid) for uid in by_uid])
        found: dict[Member, Link | None] = {}
        for of_uid, links in zip(by_uid.values(), answers, strict=True):
            if links is not None:
                by_service = {link.service: link for link in links}
                found.update((member, by_service.get(member.service)) for member in of_uid)
        return found


def _right(member: Member, link: Link | None) -> int | None:
    """The score a member must have, by its link; None: there must be none."""
    if link is None or link.pod != member.pod or link.ends == PERMANENT:
        return None
    return link.ends


def _repair(doubt: _Doubt) -> Operation[bool]:
    right = _right(doubt.member, doubt.link)
    if doubt.score is None:
        unit = 1
    elif right is None and not (doubt.link and doubt.link.pod == doubt.member.pod):
        unit = -1
    else:
        unit = 0
    return operations.mend_member(doubt.member, found=doubt.score, right=right, unit=unit)
