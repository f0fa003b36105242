"""Gathers the calls that the tasks of one event loop make while earlier ones are under way, and sends them together.

Nothing waits for company: a call on an idle executor leaves at once. Under load the batches grow by themselves, to what
has gathered while the last one was under way.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Final, NamedTuple, TypeVar

from podlink.domain.errors import PodLinkError
from podlink.store import calls
from podlink.store.operations import Operation

T = TypeVar("T")

LANES: Final = 2
"""Batches under way at a time: while the server works on one, the other is packed or unpacked."""

FEW: Final = 16
"""So few calls do not make a second batch beside one that is under way: they would stay a small one for good."""

MOST: Final = 256
"""Calls of one batch, which is a pipeline of several script calls then."""

Run = Callable[[Callable[[], Sequence[Operation[Any]]]], Awaitable[list[Any]]]
"""Asks for operations when it can send them, and returns a result for each: a value or a PodLinkError."""

Report = Callable[[Sequence[Operation[Any]], Sequence[Any], float], None]
"""Told of operations that ended without being run, with their results and the seconds that took."""


class _Letter(NamedTuple):
    operation: Operation[Any]
    future: "asyncio.Future[Any]"
    posted: float


class _Flight:
    """Letters under way together."""

    def __init__(self, letters: Sequence[_Letter], landed: "asyncio.Future[None]") -> None:
        self.letters = letters
        self.landed = landed
        self.boarded: list[_Letter] = []
        self.task: asyncio.Task[None] | None = None
        """Kept here, for the loop does not keep it."""

    def board(self) -> list[Operation[Any]]:
        """Choose what is sent: not what was cancelled, or given up, while it waited for a connection."""
        self.boarded = [letter for letter in self.letters if not letter.future.done()]
        return [letter.operation for letter in self.boarded]


class Mailbox:
    """Takes operations one at a time, and has them run in batches."""

    def __init__(self, run: Run, timeout_seconds: float, report: Report) -> None:
        self._run = run
        self._report = report
        self._timeout_seconds = timeout_seconds
        self._waiting: deque[_Letter] = deque()
        self._flights: set[_Flight] = set()
        self._collecting = False
        self._alarm: asyncio.TimerHandle | None = None
        # What one caller keeps in context variables is no business of a batch.
        self._context = contextvars.Context()

    def post(self, operation: Operation[T]) -> "asyncio.Future[T]":
        """Have an operation run; the future holds its result, or its PodLinkError."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.append(_Letter(operation, future, loop.time()))
        if not self._collecting and self._may_leave():
            self._collecting = True
            # What the other tasks of this turn of the loop ask for comes along.
            loop.call_soon(self._collect, context=self._context)
        if self._alarm is None:
            self._alarm = loop.call_later(self._timeout_seconds, self._give_up, context=self._context)
        return future

    @property
    def idle(self) -> bool:
        """Whether nothing is under way and nothing waits."""
        return not self._flights and not self._waiting

    @contextmanager
    def one_alone(self) -> Iterator[None]:
        """Occupy a lane with a call that its caller runs: with no company, that is the shortest way."""
        flight = _Flight((), asyncio.get_running_loop().create_future())
        self._flights.add(flight)
        try:
            yield
        finally:
            self._land(flight)

    async def drain(self) -> None:
        """Wait until everything is answered that was asked for before, which the deadline bounds."""
        pending = [letter.future for letter in self._unanswered()] + [flight.landed for flight in self._flights]
        if pending:
            await asyncio.wait(pending)
        if self._alarm is not None and not self._waiting and not self._flights:
            self._alarm.cancel()
            self._alarm = None

    def _may_leave(self) -> bool:
        return bool(self._waiting) and (not self._flights or (len(self._flights) < LANES and len(self._waiting) >= FEW))

    def _collect(self) -> None:
        self._collecting = False
        while self._may_leave():
            # Shared out evenly, so that no batch waits for a much longer one.
            share = min(MOST, max(FEW, -(-len(self._waiting) // (LANES - len(self._flights)))))
            self._send([self._waiting.popleft() for _ in range(min(share, len(self._waiting)))])

    def _send(self, taken: Sequence[_Letter]) -> None:
        # The caller of an answered one was cancelled, or its time was up.
        letters = [letter for letter in taken if not letter.future.done()]
        if letters:
            loop = asyncio.get_running_loop()
            flight = _Flight(letters, loop.create_future())
            self._flights.add(flight)
            flight.task = loop.create_task(self._fly(flight), context=self._context)

    async def _fly(self, flight: _Flight) -> None:
        try:
            results = await self._run(flight.board)
            for letter, result in zip(flight.boarded, results, strict=True):
                if letter.future.done():
                    continue
                if isinstance(result, PodLinkError):
                    letter.future.set_exception(result)
                else:
                    letter.future.set_result(result)
        except asyncio.CancelledError:  # somebody cancels every task there is
            for letter in flight.letters:
                letter.future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - what an observer raises reaches the callers
            for letter in flight.letters:
                if not letter.future.done():
                    letter.future.set_exception(error)
        finally:
            self._land(flight)

    def _land(self, flight: _Flight) -> None:
        self._flights.discard(flight)
        if not flight.landed.done():
            flight.landed.set_result(None)
        if self._waiting and not self._collecting:
            self._collecting = True
            # Not at once: the tasks that were just answered may ask for more.
            asyncio.get_running_loop().call_soon(self._collect, context=self._context)

    def _give_up(self) -> None:
        """Fail what is past its deadline; behind a stalled batch, a call has waited before it was sent."""
        loop = asyncio.get_running_loop()
        latest = loop.time() - self._timeout_seconds
        sent = {letter.future for flight in self._flights for letter in flight.boarded}
        given_up: list[tuple[_Letter, PodLinkError]] = []
        for letter in list(self._unanswered()):
            if letter.posted <= latest:
                error = calls.timed_out(letter.operation, self._timeout_seconds, sent=letter.future in sent)
                letter.future.set_exception(error)
                given_up.append((letter, error))
        oldest = min((letter.posted for letter in self._unanswered()), default=None)
        self._alarm = None
        if oldest is not None:
            self._alarm = loop.call_at(oldest + self._timeout_seconds, self._give_up, context=self._context)
        for letter, failure in given_up:
            if letter.future not in sent:  # else the batch reports it
                self._report([letter.operation], [failure], loop.time() - letter.posted)

    def _unanswered(self) -> Iterator[_Letter]:
        letters = chain(self._waiting, *(flight.letters for flight in self._flights))
        return (letter for letter in letters if not letter.future.done())
