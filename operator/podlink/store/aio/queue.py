"""The queue of calls to one server, which sends the calls of all tasks of one event loop in batches.

A call to an idle server is sent at once. While calls are in flight, new calls stay in the queue and are then sent
together. So batches grow with the load.
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
from podlink.store.aio.connection import Connection
from podlink.store.aio.pending import Batch, CallBatch, PendingCall, Pipeline
from podlink.store.aio.server import Server
from podlink.store.batching.exchange import Exchange, Request, SendMode, exchange
from podlink.store.batching.merging import BATCH_SIZE
from podlink.store.batching.outcomes import Lost, Reply, outcome, timeout_error
from podlink.store.operations import Operation
from podlink.store.topology.health import Health, added

T = TypeVar("T")

MAX_IN_FLIGHT: Final = 8
"""Batches in flight at a time. While the server runs some, others are packed or unpacked."""

FEW: Final = 4
"""With fewer calls, no second batch is sent beside one in flight: too few calls would share the cost of a batch."""

Report = Callable[[Sequence[Operation[Any]], Sequence[Any], float], Mapping[int, Exception]]
"""Called with operations that ended, their results, and the seconds that they took. Returns what an observer raised, by
the index of the operation."""


class _InFlight:
    """A batch in flight: its exchange with the server, and the connection that it was last sent on."""

    __slots__ = ("batch", "connection", "exchange", "sent_at")

    def __init__(self, batch: Batch, connection: Connection) -> None:
        self.sent_at = time.monotonic()
        self.batch = batch
        self.connection = connection
        self.exchange: Exchange[list[Any]] = exchange(batch.operations, batch.mode, connection.known)


class CallQueue:
    """Takes the operations for one server and runs them in batches. It belongs to one event loop."""

    def __init__(self, server: Server, timeout_seconds: float, report: Report, mode: SendMode) -> None:
        """Send nothing yet.

        Args:
            server: the server.
            timeout_seconds: every call ends within this time, with a result or an error.
            report: called with every operation that ended.
            mode: how single calls are sent.
        """
        self._server = server
        self._report = report
        self._timeout_seconds = timeout_seconds
        self._mode = mode
        self._calls: deque[PendingCall] = deque()
        self._pipelines: deque[Pipeline] = deque()
        self._batches_in_flight: set[_InFlight] = set()
        self._pipelines_in_flight: set[_InFlight] = set()
        self._send_scheduled = False
        self._opening = False
        self._deadline: asyncio.TimerHandle | None = None
        self._script_reloads = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        # A batch has calls of many callers, so it must not run in the context of one of them.
        self._context = contextvars.Context()

    def submit(self, operation: Operation[T]) -> "asyncio.Future[T]":
        """Run an operation. The future gets its result, or its PodLinkError."""
        # Asking for the running loop is a system call on some versions of Python.
        future: asyncio.Future[T] = asyncio.Future(loop=self._loop or self._bind_loop())
        calls = self._calls
        calls.append((operation, future, time.monotonic()))
        if not self._batches_in_flight:
            if not self._send_scheduled:
                self._send_pending()
        elif len(calls) == FEW:
            # Calls that other tasks make in this iteration of the loop are sent with these.
            self._send_pending_soon()
        return future

    def submit_together(
        self, operations: Sequence[Operation[Any]], *, ordered: bool = True
    ) -> "asyncio.Future[list[Any]]":
        """Run operations in one pipeline. The future gets a result, or a PodLinkError, for each.

        Args:
            operations: what to run.
            ordered: whether they keep their order.
        """
        loop = self._loop or self._bind_loop()
        mode = SendMode(ordered=True, wait=self._mode.wait) if ordered else self._mode
        pipeline = Pipeline(operations, mode, loop.create_future())
        self._pipelines.append(pipeline)
        self._send_pending()
        return pipeline.future

    def health(self) -> Health:
        """Return the state of the connections to the server."""
        server = self._server
        return Health(server.connections, int(server.is_away), self._script_reloads, server.opened)

    async def aclose(self) -> None:
        """Wait until all calls so far have ended, which the timeout bounds, and disconnect."""
        pending = [call[1] for call in self._calls] + [pipeline.future for pipeline in self._pipelines]
        for sent in chain(self._batches_in_flight, self._pipelines_in_flight):
            pending += sent.batch.futures()
        if pending:
            await asyncio.wait(pending)
        await self._server.aclose()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _bind_loop(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        return self._loop

    def _send_pending_soon(self) -> None:
        if not self._send_scheduled:
            self._send_scheduled = True
            (self._loop or self._bind_loop()).call_soon(self._send_pending, context=self._context)

    def _send_pending(self) -> None:
        """Send what may be sent now."""
        self._send_scheduled = False
        if self._deadline is None and (self._calls or self._pipelines):
            self._set_deadline(self._timeout_seconds)
        connection = self._server.connection
        if connection is None:
            if (self._calls or self._pipelines) and not self._opening:
                self._opening = True
                self._server.open(self._opened)
            return
        if self._mode.wait:
            self._send_one(connection)
            return
        calls, in_flight = self._calls, self._batches_in_flight
        size = BATCH_SIZE
        if not in_flight and len(calls) >= 2 * FEW:
            # An idle server gets half of the calls first. It runs them while the other half is packed. In one batch,
            # server and callers would wait for each other in turns, and this would go on: callers that get their
            # results together also make their next calls together.
            size = min(size, (len(calls) + 1) // 2)
        while calls and (not in_flight or (len(calls) >= FEW and len(in_flight) < MAX_IN_FLIGHT)):
            self._send_calls(size, connection)
        while self._pipelines and len(self._pipelines_in_flight) < MAX_IN_FLIGHT:
            self._send_pipeline(connection)

    def _send_one(self, connection: Connection) -> None:
        """Send what has waited longest, if nothing is in flight.

        In this mode each batch waits for replicas. A batch that waits in vain must not delay those behind it beyond
        their deadline. So these stay in the queue, and then share one wait.
        """
        while (self._calls or self._pipelines) and not (self._batches_in_flight or self._pipelines_in_flight):
            if self._pipelines and (not self._calls or self._pipelines[0].since <= self._calls[0][2]):
                self._send_pipeline(connection)
            else:
                self._send_calls(len(self._calls), connection)

    def _send_calls(self, most: int, connection: Connection) -> None:
        taken = [self._calls.popleft() for _ in range(min(most, len(self._calls)))]
        wanted = [call for call in taken if not call[1].done()]
        if wanted:
            self._send(CallBatch(wanted, self._mode), connection, self._batches_in_flight)

    def _send_pipeline(self, connection: Connection) -> None:
        pipeline = self._pipelines.popleft()
        if not pipeline.future.done():
            self._send(pipeline, connection, self._pipelines_in_flight)

    def _opened(self, cause: BaseException | None) -> None:
        self._opening = False
        if cause is None:
            self._send_pending()
            return
        for batch in self._take_out(latest=float("inf")):
            self._fail_unsent(batch, cause)

    def _send(self, batch: Batch, connection: Connection, in_flight: set[_InFlight]) -> None:
        sent = _InFlight(batch, connection)
        in_flight.add(sent)
        self._continue(sent, None)

    def _continue(self, sent: _InFlight, replies: list[Reply] | None) -> None:
        """Take the exchange of a batch one step further. Without replies, start it."""
        try:
            try:
                requests = next(sent.exchange) if replies is None else self._following(sent, replies)
            except StopIteration as end:
                self._complete(sent, end.value)
                return
            if self._server.connection is not None:
                sent.connection = self._server.connection
                sent.connection.send(requests, partial(self._continue, sent))
                return
        except Exception as error:  # noqa: BLE001 - callers must get every error, or they would wait for ever
            self._fail(sent, error)
            return
        self._continue(sent, [Lost(ConnectionError("the connection was lost"), sent=False)] * len(requests))

    def _following(self, sent: _InFlight, replies: list[Reply]) -> list[Request]:
        """Return the requests that the exchange of a batch sends next."""
        requests = sent.exchange.send(replies)
        if requests[0][:2] == ("SCRIPT", "LOAD"):
            self._script_reloads += 1
        return requests

    def _complete(self, sent: _InFlight, results: Sequence[Any]) -> None:
        if any(
            isinstance(result, RedisUnavailable) and isinstance(result.__cause__, ReadOnlyError) for result in results
        ):
            # The primary became a replica and stays one. The next call must look for the new primary.
            self._server.leave()
        self._finish(sent.batch, results, time.monotonic() - sent.sent_at)
        self._remove(sent)

    def _fail(self, sent: _InFlight, error: Exception) -> None:
        for future in sent.batch.futures():
            if not future.done():
                future.set_exception(error)
        self._remove(sent)

    def _remove(self, sent: _InFlight) -> None:
        self._batches_in_flight.discard(sent)
        self._pipelines_in_flight.discard(sent)
        if self._calls or self._pipelines:
            # Not at once: the tasks that just got their results may make more calls.
            self._send_pending_soon()

    def _fail_unsent(self, batch: Batch, cause: BaseException) -> None:
        lost = Lost(cause, sent=False)
        results = [outcome(operation, lost) for operation in batch.operations]
        self._finish(batch, results, time.monotonic() - batch.since)

    def _finish(self, batch: Batch, results: Sequence[Any], seconds: float) -> None:
        raised = self._report(batch.operations, results, seconds)
        if raised:
            results = [raised.get(index, result) for index, result in enumerate(results)]
        batch.resolve(results)

    def _at_deadline(self) -> None:
        """Fail what has reached its deadline, and drop a connection that gave no answer for so long."""
        self._deadline = None
        now = time.monotonic()
        latest = now - self._timeout_seconds
        in_flight = [*self._batches_in_flight, *self._pipelines_in_flight]
        for connection in {sent.connection for sent in in_flight if sent.batch.since <= latest}:
            self._server.drop(connection, timeout_error(self._timeout_seconds, sent=True))
        cause = timeout_error(self._timeout_seconds, sent=False)
        if in_flight:
            cause = TimeoutError(f"calls before this one had no answer within {self._timeout_seconds:g} seconds")
        for batch in self._take_out(latest):
            self._fail_unsent(batch, cause)
        times = [sent.batch.since for sent in in_flight if sent.batch.since > latest]
        times += [call[2] for call in islice(self._calls, 1)]
        times += [pipeline.since for pipeline in islice(self._pipelines, 1)]
        if times:
            self._set_deadline(min(times) - latest)

    def _take_out(self, latest: float) -> list[Batch]:
        """Take out of the queue what was submitted until then."""
        batches: list[Batch] = []
        calls: list[PendingCall] = []
        while self._calls and self._calls[0][2] <= latest:
            call = self._calls.popleft()
            if not call[1].done():
                calls.append(call)
        if calls:
            batches.append(CallBatch(calls, self._mode))
        while self._pipelines and self._pipelines[0].since <= latest:
            batches.append(self._pipelines.popleft())
        return batches

    def _set_deadline(self, seconds: float) -> None:
        loop = self._loop or self._bind_loop()
        self._deadline = loop.call_later(seconds, self._at_deadline, context=self._context)


@dataclass(frozen=True, slots=True)
class ServerQueues:
    """The queues of one server. There are two if writes wait for replicas, so that reads do not wait behind them."""

    reads: CallQueue
    writes: CallQueue

    def of(self, operations: Iterable[Operation[Any]]) -> CallQueue:
        """Return the queue for operations that are sent together."""
        return self.writes if any(operation.shape.writes for operation in operations) else self.reads

    def health(self) -> Health:
        """Return the state of the connections of both queues."""
        return added(queue.health() for queue in {self.reads, self.writes})

    async def aclose(self) -> None:
        """Close both queues, see `CallQueue.aclose`."""
        for queue in {self.reads, self.writes}:
            await queue.aclose()
