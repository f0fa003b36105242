"""Many reads of keys that other clients write too: how fast they go, and what becomes of what others spoilt."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from podlink.domain.errors import PodLinkError, RedisUnavailable
from podlink.store.aio.executor import StatefulExecutor
from podlink.store.operations import Operation

T = TypeVar("T")

KEYS_PER_SECOND: Final = 5_000
"""Default rate. It takes 2 to 4 percent of a server's time, and three minutes for a walk over 500,000 links."""

BATCH: Final = 100
"""Operations of one pipeline; scripts of the recount take the server some microseconds each."""

Spend = Callable[[int], Awaitable[None]]
"""Told how many keys (or members, or services) were looked at; returns when the next may be."""


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


class Inquiry:
    """Runs operations at a bounded rate, and goes on where single ones fail.

    Attributes:
        left_out: how many operations the server refused, or answered with something else than the layout promises.
        reason: the first of these errors; None when there was none.
    """

    def __init__(self, executor: StatefulExecutor, spend: Spend) -> None:
        self.executor = executor
        self.spend = spend
        self.left_out = 0
        self.reason: PodLinkError | None = None

    async def ask(self, operations: Sequence[Operation[T]], *, only: str = "") -> list[T | None]:
        """Run operations, in order.

        Args:
            operations: what to run.
            only: leave out only operations whose error contains this. Other errors are raised.

        Returns:
            The result of each, None in place of one that was left out.

        Raises:
            RedisUnavailable: no answer to at least one.
            PodLinkError: an error that does not contain `only`.
        """
        answers: list[T | None] = []
        for start in range(0, len(operations), BATCH):
            for result in await self.executor.run_many(operations[start : start + BATCH]):
                if isinstance(result, RedisUnavailable):
                    raise result
                if isinstance(result, PodLinkError):
                    if only not in str(result):
                        raise result
                    self.left_out += 1
                    self.reason = self.reason or result
                    answers.append(None)
                else:
                    answers.append(result)
        return answers
