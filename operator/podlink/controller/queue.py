"""A queue of keys to look at, with the semantics of client-go's workqueue.

A key waits at most once, is never handled by two workers at a time, and one that is added while it is handled is
handled again afterwards. See https://pkg.go.dev/k8s.io/client-go/util/workqueue.
"""

import asyncio
import contextvars
from collections.abc import Iterable

_FIRST_DELAY_SECONDS = 0.1
_LAST_DELAY_SECONDS = 30.0

Key = tuple[str, str]


class WorkQueue:
    """Keys, in the order in which they were first added."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()
        self._handled: set[Key] = set()
        self._context = contextvars.Context()
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: Key) -> bool:
        return key in self._waiting or key in self._handled

    def update(self, keys: Iterable[Key]) -> None:
        """Ask for keys to be handled soon."""
        for key in keys:
            if key in self._waiting:
                continue
            self._waiting.add(key)
            if key not in self._handled:
                self._put(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Ask for a key to be handled later; of several such wishes the earliest holds."""
        loop = asyncio.get_running_loop()
        due = loop.time() + max(0.0, seconds)
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= due:
                return
            timer.cancel()
        # In a context of its own: that of the caller has a span, which would live for as long as the timer.
        self._timers[key] = loop.call_at(due, self._due, key, context=self._context)

    def _due(self, key: Key) -> None:
        del self._timers[key]
        self.update((key,))

    async def get(self) -> Key:
        """Wait for a key. Every key that was got must be given back with `done`."""
        key = await self._queue.get()
        self._waiting.discard(key)
        self._handled.add(key)
        self._idle.clear()
        return key

    def done(self, key: Key) -> None:
        """Give a key back; if it was asked for meanwhile, it is handled again."""
        self._handled.discard(key)
        if not self._handled:
            self._idle.set()
        if key in self._waiting:
            self._put(key)

    async def drain(self) -> None:
        """Hand out no more keys, and wait until those that were are given back."""
        self._draining = True
        while not self._queue.empty():
            self._queue.get_nowait()
        await self._idle.wait()

    def close(self) -> None:
        """Forget who asked to be handled later."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _put(self, key: Key) -> None:
        if not self._draining:
            self._queue.put_nowait(key)

    def retry(self, key: Key) -> float:
        """Ask for a key that failed to be handled again, later each time; return the delay in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(_LAST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(failures, 10))
        self.add_after(key, delay)
        return delay

    def succeeded(self, key: Key) -> None:
        """Forget the failures of a key."""
        self._failures.pop(key, None)
