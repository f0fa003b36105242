"""Gathers the calls that the tasks of one event loop make while earlier ones are under way, and sends them together.

Nothing waits for company: a call to an idle server leaves at once. Under load the batches grow by themselves, to what
has gathered while the last ones were under way.

A batch under way is a flight: a conversation (see `calls`) with one server over its one connection.
"""

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, Final, TypeAlias, TypeVar

from redis.exceptions import ReadOnlyError

from podlink.store.calls import Conversation, Manner, conversation
from podlink.store.node import Node
from podlink.store.operations import Operation
from podlink.store.outcomes import Lost, Reply, outcome, timed_out, timeout_error

T = TypeVar("T")

FLIGHTS: Final = 8
"""Batches under way at a time: while the server works on some, others are packed or unpacked."""

FEW: Final = 16
"""So few calls do not make a second batch beside one that is under way: they would stay a small one for good."""

MOST: Final = 64
"""Calls of one batch, which is one script call then."""

Report = Callable[[Sequence[Operation[Any]], Sequence[Any], float], None]
"""Told of operations that ended, with their results and the seconds that took."""


_Letter: TypeAlias = "tuple[Operation[Any], asyncio.Future[Any], float]"
"""An operation, the future of its result, and when it was posted. One is made for every call, so it is no class."""


class _Flight:
    """Letters under way together."""

    __slots__ = ("left", "letters", "operations", "talk")

    def __init__(self, letters: Sequence[_Letter], manner: Manner) -> None:
        self.letters = letters
        self.left = time.monotonic()
        self.operations = [operation for operation, _, _ in letters]
        self.talk: Conversation[list[Any]] = conversation(self.operations, manner)


class Mailbox:
    """Takes the operations for one server, one at a time, and has them run in batches."""

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
        self._ordered = Manner(ordered=True, confirm_ms=manner.confirm_ms)
        self._waiting: deque[_Letter] = deque()
        self._groups: deque[Sequence[_Letter]] = deque()
        self._flights: set[_Flight] = set()
        self._collecting = False
        self._opening = False
        self._alarm: asyncio.TimerHandle | None = None
        # What one caller keeps in context variables is no business of a batch.
        self._context = contextvars.Context()

    def post(self, operation: Operation[T]) -> "asyncio.Future[T]":
        """Have an operation run; the future holds its result, or its PodLinkError."""
        letter = self._letter(operation)
        self._waiting.append(letter)
        if not self._flights:
            if not self._collecting:
                self._collect()
        elif len(self._waiting) == FEW:
            # What the other tasks of this turn of the loop ask for comes along.
            self._collect_soon()
        return letter[1]

    def post_together(self, operations: Sequence[Operation[Any]]) -> "list[asyncio.Future[Any]]":
        """Have operations run in one pipeline, in their order."""
        letters = [self._letter(operation) for operation in operations]
        if letters:
            self._groups.append(letters)
            self._collect()
        return [future for _, future, _ in letters]

    async def aclose(self) -> None:
        """Wait until everything is answered that was asked for before, which the deadline bounds; and disconnect."""
        pending = [future for _, future, _ in self._unanswered()]
        if pending:
            await asyncio.wait(pending)
        await self._node.aclose()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _letter(self, operation: Operation[Any]) -> _Letter:
        loop = asyncio.get_running_loop()
        if self._alarm is None:
            self._alarm = loop.call_later(self._timeout_seconds, self._give_up, context=self._context)
        return operation, loop.create_future(), time.monotonic()

    def _collect_soon(self) -> None:
        if not self._collecting:
            self._collecting = True
            asyncio.get_running_loop().call_soon(self._collect, context=self._context)

    def _collect(self) -> None:
        self._collecting = False
        if self._node.wire is None:
            if (self._waiting or self._groups) and not self._opening:
                self._opening = True
                self._node.open(self._opened)
            return
        while self._groups:
            self._send(self._groups.popleft(), self._ordered)
        waiting = self._waiting
        while waiting and (not self._flights or (len(waiting) >= FEW and len(self._flights) < FLIGHTS)):
            self._send([waiting.popleft() for _ in range(min(MOST, len(waiting)))], self._manner)

    def _opened(self, cause: BaseException | None) -> None:
        self._opening = False
        if cause is None:
            self._collect()
            return
        letters = [letter for letter in (*self._waiting, *chain(*self._groups)) if not letter[1].done()]
        self._waiting.clear()
        self._groups.clear()
        if isinstance(cause, asyncio.CancelledError):
            for _, future, _ in letters:
                future.cancel()
        elif letters:
            self._land(
                _Flight(letters, self._ordered), [outcome(letter[0], Lost(cause, sent=False)) for letter in letters]
            )

    def _send(self, taken: Sequence[_Letter], manner: Manner) -> None:
        # The caller of an answered one was cancelled, or its time was up.
        letters = [letter for letter in taken if not letter[1].done()]
        if letters:
            flight = _Flight(letters, manner)
            self._flights.add(flight)
            self._continue(flight, None)

    def _continue(self, flight: _Flight, replies: list[Reply] | None) -> None:
        """Take a flight's conversation one step further; without replies, it begins."""
        try:
            requests = next(flight.talk) if replies is None else flight.talk.send(replies)
        except StopIteration as end:
            self._land(flight, end.value)
            return
        wire = self._node.wire
        if wire is None:
            self._continue(flight, [Lost(ConnectionError("the connection was lost"), sent=False)] * len(requests))
        else:
            wire.send(requests, partial(self._continue, flight))

    def _land(self, flight: _Flight, results: Sequence[Any]) -> None:
        self._flights.discard(flight)
        try:
            self._report(flight.operations, results, time.monotonic() - flight.left)
        except Exception as error:  # noqa: BLE001 - what an observer raises reaches the callers
            results = [error] * len(results)
        for (_, future, _), result in zip(flight.letters, results, strict=True):
            if isinstance(result, Exception):
                if isinstance(result.__cause__, ReadOnlyError):
                    # The primary became a replica, and stays one: the next call has to look for the new primary.
                    self._node.leave()
                if not future.done():
                    future.set_exception(result)
            elif not future.done():
                future.set_result(result)
        if self._waiting:
            # Not at once: the tasks that were just answered may ask for more.
            self._collect_soon()

    def _give_up(self) -> None:
        """Fail what is past its deadline, and leave a server that has not answered for as long."""
        self._alarm = None
        now = time.monotonic()
        latest = now - self._timeout_seconds
        if any(flight.left <= latest for flight in self._flights):
            self._node.drop(timeout_error(self._timeout_seconds, sent=True))
        self._expire(chain(self._waiting, *self._groups), latest, sent=False)
        self._expire(chain(*(flight.letters for flight in self._flights)), latest, sent=True)
        times = chain((posted for _, _, posted in self._unanswered()), (flight.left for flight in self._flights))
        oldest = min((when for when in times if when > latest), default=None)
        if oldest is not None:
            delay = oldest + self._timeout_seconds - now
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_later(delay, self._give_up, context=self._context)

    def _expire(self, letters: Iterable[_Letter], latest: float, *, sent: bool) -> None:
        for operation, future, posted in letters:
            if posted <= latest and not future.done():
                error = timed_out(operation, self._timeout_seconds, sent=sent)
                future.set_exception(error)
                if not sent:  # else it is reported when the flight lands
                    self._report([operation], [error], time.monotonic() - posted)

    def _unanswered(self) -> Iterator[_Letter]:
        letters = chain(self._waiting, *self._groups, *(flight.letters for flight in self._flights))
        return (letter for letter in letters if not letter[1].done())
