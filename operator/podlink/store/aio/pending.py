"""What the queue sends: single calls of many callers in one batch, or a pipeline of one caller."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

from podlink.domain.errors import PodLinkError
from podlink.store.batching.exchange import SendMode
from podlink.store.operations import Operation

PendingCall: TypeAlias = "tuple[Operation[Any], asyncio.Future[Any], float]"
"""An operation, the future of its result, and the monotonic time of the call. A tuple, because each call makes one."""


class Batch(Protocol):
    """Operations that are sent together.

    Attributes:
        operations: in the order of the results.
        mode: how they are sent.
        since: monotonic time of the first call among them.
    """

    operations: Sequence[Operation[Any]]
    mode: SendMode
    since: float

    def futures(self) -> Sequence["asyncio.Future[Any]"]:
        """Return the futures that callers wait for."""

    def resolve(self, results: Sequence[Any]) -> None:
        """Give the results, or the exceptions among them, to the callers that still wait."""


class CallBatch:
    """Single calls, each with its own caller."""

    __slots__ = ("_futures", "mode", "operations", "since")

    def __init__(self, calls: Sequence[PendingCall], mode: SendMode) -> None:
        self.operations: Sequence[Operation[Any]] = [call[0] for call in calls]
        self._futures = [call[1] for call in calls]
        self.since = calls[0][2]
        self.mode = mode

    def futures(self) -> Sequence["asyncio.Future[Any]"]:
        """Return one future for each call."""
        return self._futures

    def resolve(self, results: Sequence[Any]) -> None:
        """Give each caller its own result, or raise its own error there."""
        for future, result in zip(self._futures, results, strict=True):
            if future.done():  # its caller was cancelled
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


class Pipeline:
    """Many operations of one caller, with one future for the list of their results."""

    __slots__ = ("future", "mode", "operations", "since")

    def __init__(self, operations: Sequence[Operation[Any]], mode: SendMode, future: "asyncio.Future[Any]") -> None:
        self.operations = operations
        self.mode = mode
        self.since = time.monotonic()
        self.future = future

    def futures(self) -> Sequence["asyncio.Future[Any]"]:
        """Return the one future."""
        return [self.future]

    def resolve(self, results: Sequence[Any]) -> None:
        """Give all results to the caller, PodLinkErrors among them. Raise there what an observer raised."""
        if self.future.done():
            return
        raised = next(
            (each for each in results if isinstance(each, Exception) and not isinstance(each, PodLinkError)), None
        )
        if raised is not None:
            self.future.set_exception(raised)
        else:
            self.future.set_result(results)
