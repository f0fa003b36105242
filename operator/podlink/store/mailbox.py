"""Gathers the calls that the tasks of one event loop make while earlier ones are under way, and sends them together.

Nothing waits for company: a call to an idle server leaves at once. Under load the batches grow by themselves, to what
has gathered while the last ones were under way.
"""

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, Final, TypeVar

from redis.exceptions import ReadOnlyError

from podlink.domain.errors import RedisUnavailable
from podlink.store.calls import Conversation, Manner, Request, conversation
from podlink.store.health import Health, added
from podlink.store.merging import BATCH_SIZE
from podlink.store.node import Node
from podlink.store.operations import Operation
from podlink.store.outcomes import Lost, Reply, outcome, timeout_error
from podlink.store.parcels import Batch, Group, Letter, Parcel
from podlink.store.wire import Wire

T = TypeVar("T")

FLIGHTS: Final = 8
"""Batches under way at a time: while the server works on some, others are packed or unpacked."""

FEW: Final = 4
"""Fewer calls do not make a second batch beside one that is under way: too few would share what a batch costs."""

Report = Callable[[Sequence[Operation[Any]], Sequence[Any], float], Mapping[int, Exception]]
"""Told of operations that ended, with their results and the seconds that took. Returns what an observer raised, by the
place of the operation."""


class _Flight:
    """A parcel under way: a conversation (see `calls`) with the server, and the connection it was last sent on."""

    __slots__ = ("left", "parcel", "talk", "wire")

    def __init__(self, parcel: Parcel, wire: Wire) -> None:
        self.left = time.monotonic()
        self.parcel = parcel
        self.wire = wire
        self.talk: Conversation[list[Any]] = conversation(parcel.operations, parcel.manner, wire.known)


class Mailbox:
    """Takes the operations for one server, and has them run in batches. It belongs to one event loop."""

    def __init__(self, node: Node, timeout_seconds: float, report: Report, manner: Manner) -> None:
        """Send nothing yet.

        Args:
            node: the server.
            timeout_seconds: within which every call is answered, one way or another.
            report: told of every operation that ended.
            manner: how single calls are sent.
        """
        self._node = node
        self._report = report
        self._timeout_seconds = timeout_seconds
        self._manner = manner
        self._letters: deque[Letter] = deque()
        self._groups: deque[Group] = deque()
        self._batches: set[_Flight] = set()
        self._pipelines: set[_Flight] = set()
        self._collecting = False
        self._opening = False
        self._alarm: asyncio.TimerHandle | None = None
        self._script_reloads = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        # What one caller keeps in context variables is no business of a batch.
        self._context = contextvars.Context()

    def post(self, operation: Operation[T]) -> "asyncio.Future[T]":
        """Have an operation run; the future holds its result, or its PodLinkError."""
        # Asking for the running loop is a system call on some versions of Python.
        future: asyncio.Future[T] = asyncio.Future(loop=self._loop or self._begin())
        letters = self._letters
        letters.append((operation, future, time.monotonic()))
        if not self._batches:
            if not self._collecting:
                self._collect()
        elif len(letters) == FEW:
            # What the other tasks of this turn of the loop ask for comes along.
            self._collect_soon()
        return future

    def post_together(
        self, operations: Sequence[Operation[Any]], *, ordered: bool = True
    ) -> "asyncio.Future[list[Any]]":
        """Have operations run in one pipeline; the future holds a result, or a PodLinkError, for each.

        Args:
            operations: what to run.
            ordered: whether they keep their order.
        """
        loop = self._loop or self._begin()
        manner = Manner(ordered=True, wait=self._manner.wait) if ordered else self._manner
        group = Group(operations, manner, loop.create_future())
        self._groups.append(group)
        self._collect()
        return group.future

    def health(self) -> Health:
        """How the connection to the server is."""
        return Health(self._node.connections, int(self._node.is_away), self._script_reloads)

    async def aclose(self) -> None:
        """Wait until everything is answered that was asked for before, which the deadline bounds; and disconnect."""
        pending = [letter[1] for letter in self._letters] + [group.future for group in self._groups]
        for flight in chain(self._batches, self._pipelines):
            pending += flight.parcel.futures()
        if pending:
            await asyncio.wait(pending)
        await self._node.aclose()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _begin(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        return self._loop

    def _collect_soon(self) -> None:
        if not self._collecting:
            self._collecting = True
            (self._loop or self._begin()).call_soon(self._collect, context=self._context)

    def _collect(self) -> None:
        """Send what may leave."""
        self._collecting = False
        if self._alarm is None and (self._letters or self._groups):
            self._set_alarm(self._timeout_seconds)
        wire = self._node.wire
        if wire is None:
            if (self._letters or self._groups) and not self._opening:
                self._opening = True
                self._node.open(self._opened)
            return
        if self._manner.wait:
            self._send_one(wire)
            return
        letters = self._letters
        size = BATCH_SIZE
        if not self._batches and len(letters) >= 2 * FEW:
            # An idle server gets half of them first, and works on it while the other half is packed; later, it works on
            # either half while the callers of the other go on. In one piece, server and callers would wait for each
            # other in turns, and for good: whoever is answered together asks together again.
            size = min(size, (len(letters) + 1) // 2)
        while letters and (not self._batches or (len(letters) >= FEW and len(self._batches) < FLIGHTS)):
            self._send_letters(size, wire)
        while self._groups and len(self._pipelines) < FLIGHTS:
            self._send_group(wire)

    def _send_one(self, wire: Wire) -> None:
        """Send what has waited longest, if nothing is under way.

        Each waits for replicas then. One that waits in vain must not keep those behind it beyond their time, so they
        stay here, to share one wait of their own.
        """
        while (self._letters or self._groups) and not (self._batches or self._pipelines):
            if self._groups and (not self._letters or self._groups[0].since <= self._letters[0][2]):
                self._send_group(wire)
            else:
                self._send_letters(len(self._letters), wire)

    def _send_letters(self, most: int, wire: Wire) -> None:
        taken = [self._letters.popleft() for _ in range(min(most, len(self._letters)))]
        wanted = [letter for letter in taken if not letter[1].done()]
        if wanted:
            self._send(Batch(wanted, self._manner), wire, self._batches)

    def _send_group(self, wire: Wire) -> None:
        group = self._groups.popleft()
        if not group.future.done():
            self._send(group, wire, self._pipelines)

    def _opened(self, cause: BaseException | None) -> None:
        self._opening = False
        if cause is None:
            self._collect()
            return
        for parcel in self._taken(latest=float("inf")):
            self._tell_unsent(parcel, cause)

    def _send(self, parcel: Parcel, wire: Wire, kind: set[_Flight]) -> None:
        flight = _Flight(parcel, wire)
        kind.add(flight)
        self._continue(flight, None)

    def _continue(self, flight: _Flight, replies: list[Reply] | None) -> None:
        """Take a flight's conversation one step further; without replies, it begins."""
        try:
            try:
                requests = next(flight.talk) if replies is None else self._following(flight, replies)
            except StopIteration as end:
                self._land(flight, end.value)
                return
            if self._node.wire is not None:
                flight.wire = self._node.wire
                flight.wire.send(requests, partial(self._continue, flight))
                return
        except Exception as error:  # noqa: BLE001 - whatever it is, its callers must not wait for ever
            self._crash(flight, error)
            return
        self._continue(flight, [Lost(ConnectionError("the connection was lost"), sent=False)] * len(requests))

    def _following(self, flight: _Flight, replies: list[Reply]) -> list[Request]:
        """What a flight's conversation asks for next."""
        requests = flight.talk.send(replies)
        if requests[0][:2] == ("SCRIPT", "LOAD"):
            self._script_reloads += 1
        return requests

    def _land(self, flight: _Flight, results: Sequence[Any]) -> None:
        if any(
            isinstance(result, RedisUnavailable) and isinstance(result.__cause__, ReadOnlyError) for result in results
        ):
            # The primary became a replica, and stays one: the next call has to look for the new primary.
            self._node.leave()
        self._tell(flight.parcel, results, time.monotonic() - flight.left)
        self._clear(flight)

    def _crash(self, flight: _Flight, error: Exception) -> None:
        for future in flight.parcel.futures():
            if not future.done():
                future.set_exception(error)
        self._clear(flight)

    def _clear(self, flight: _Flight) -> None:
        self._batches.discard(flight)
        self._pipelines.discard(flight)
        if self._letters or self._groups:
            # Not at once: the tasks that were just answered may ask for more.
            self._collect_soon()

    def _tell_unsent(self, parcel: Parcel, cause: BaseException) -> None:
        lost = Lost(cause, sent=False)
        results = [outcome(operation, lost) for operation in parcel.operations]
        self._tell(parcel, results, time.monotonic() - parcel.since)

    def _tell(self, parcel: Parcel, results: Sequence[Any], seconds: float) -> None:
        raised = self._report(parcel.operations, results, seconds)
        if raised:
            results = [raised.get(slot, result) for slot, result in enumerate(results)]
        parcel.tell(results)

    def _give_up(self) -> None:
        """Fail what is past its deadline, and leave a server that has not answered for as long."""
        self._alarm = None
        now = time.monotonic()
        latest = now - self._timeout_seconds
        flights = [*self._batches, *self._pipelines]
        for wire in {flight.wire for flight in flights if flight.parcel.since <= latest}:
            self._node.drop(wire, timeout_error(self._timeout_seconds, sent=True))
        cause = timeout_error(self._timeout_seconds, sent=False)
        if flights:
            cause = TimeoutError(f"calls before this one had no answer within {self._timeout_seconds:g} seconds")
        for parcel in self._taken(latest):
            self._tell_unsent(parcel, cause)
        times = [flight.parcel.since for flight in flights if flight.parcel.since > latest]
        times += [letter[2] for letter in islice(self._letters, 1)] + [group.since for group in islice(self._groups, 1)]
        if times:
            self._set_alarm(min(times) - latest)

    def _taken(self, latest: float) -> list[Parcel]:
        """Take out what was posted by then, and waits."""
        parcels: list[Parcel] = []
        letters: list[Letter] = []
        while self._letters and self._letters[0][2] <= latest:
            letter = self._letters.popleft()
            if not letter[1].done():
                letters.append(letter)
        if letters:
            parcels.append(Batch(letters, self._manner))
        while self._groups and self._groups[0].since <= latest:
            parcels.append(self._groups.popleft())
        return parcels

    def _set_alarm(self, seconds: float) -> None:
        loop = self._loop or self._begin()
        self._alarm = loop.call_later(seconds, self._give_up, context=self._context)


@dataclass(frozen=True, slots=True)
class Mailboxes:
    """Those of one server: one and the same, or two where writes wait for replicas, behind which no read is to wait."""

    reads: Mailbox
    writes: Mailbox

    def of(self, operations: Iterable[Operation[Any]]) -> Mailbox:
        """The one for operations that travel together."""
        return self.writes if any(operation.shape.writes for operation in operations) else self.reads

    def health(self) -> Health:
        """Of both."""
        return added(mailbox.health() for mailbox in {self.reads, self.writes})

    async def aclose(self) -> None:
        """Close each, as it says."""
        for mailbox in {self.reads, self.writes}:
            await mailbox.aclose()
