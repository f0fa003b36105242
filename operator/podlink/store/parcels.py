"""What the mailbox sends: calls of many callers that travel together, or many calls of one."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

from podlink.domain.errors import PodLinkError
from podlink.store.calls import Manner
from podlink.store.operations import Operation

Letter: TypeAlias = "tuple[Operation[Any], asyncio.Future[Any], float]"
"""An operation, the future of its result, and when it was posted. One is made for every call, so it is no class."""


class Parcel(Protocol):
    """Operations that travel together.

    Attributes:
        operations: in the order of the results.
        manner: how they are sent.
        since: monotonic time at which the first of them was posted.
    """

    operations: Sequence[Operation[Any]]
    manner: Manner
    since: float

    def futures(self) -> Sequence["asyncio.Future[Any]"]:
        """What callers wait for."""

    def tell(self, results: Sequence[Any]) -> None:
        """Hand the results out, exceptions among them, to those who still wait."""


class Batch:
    """Single calls, each with a caller of its own."""

    __slots__ = ("_futures", "manner", "operations", "since")

    def __init__(self, letters: Sequence[Letter], manner: Manner) -> None:
        self.operations: Sequence[Operation[Any]] = [letter[0] for letter in letters]
        self._futures = [letter[1] for letter in letters]
        self.since = letters[0][2]
        self.manner = manner

    def futures(self) -> Sequence["asyncio.Future[Any]"]:
        """One for each call."""
        return self._futures

    def tell(self, results: Sequence[Any]) -> None:
        """Each has its own result, or its own error raised."""
        for future, result in zip(self._futures, results, strict=True):
            if future.done():  # its caller was cancelled
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


class Group:
    """Many operations of one caller, whose future holds the list of their results."""

    __slots__ = ("future", "manner", "operations", "since")

    def __init__(self, operations: Sequence[Operation[Any]], manner: Manner, future: "asyncio.Future[Any]") -> None:
        self.operations = operations
        self.manner = manner
        self.since = time.monotonic()
        self.future = future

    def futures(self) -> Sequence["asyncio.Future[Any]"]:
        """The one of the caller."""
        return [self.future]

    def tell(self, results: Sequence[Any]) -> None:
        """The caller has all of them, PodLinkErrors among them; what an observer raised is raised."""
        if self.future.done():
            return
        raised = next(
            (each for each in results if isinstance(each, Exception) and not isinstance(each, PodLinkError)), None
        )
        if raised is not None:
            self.future.set_exception(raised)
        else:
            self.future.set_result(results)
