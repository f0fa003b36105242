"""A queue of keys, with the semantics of client-go's workqueue.

Each key is in the queue at most once. No two workers handle the same key at the same time. A key that is added while it
is handled is handled again afterwards. See https://pkg.go.dev/k8s.io/client-go/util/workqueue.
"""

import asyncio
import contextvars
from collections.abc import Iterable

_FIRST_DELAY_SECONDS = 0.1
_LAST_DELAY_SECONDS = 30.0

Key = tuple[str, str]


class WorkQueue:
    """A queue of keys, in the order in which they were first added."""

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
        """Add keys, to be handled as soon as possible."""
        for key in keys:
            if key in self._waiting:
                continue
            self._waiting.add(key)
            if key not in self._handled:
                self._put(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Add a key after some seconds. If it is already scheduled, the earlier time counts."""
        loop = asyncio.get_running_loop()
        due = loop.time() + max(0.0, seconds)
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= due:
                return
            timer.cancel()
        # In a context of its own. The caller's context has a span, which would live as long as the timer.
        self._timers[key] = loop.call_at(due, self._due, key, context=self._context)

    def _due(self, key: Key) -> None:
        del self._timers[key]
        self.update((key,))

    async def get(self) -> Key:
        """Wait for a key. Call `done` for every key that this returns."""
        key = await self._queue.get()
        self._waiting.discard(key)
        self._handled.add(key)
        self._idle.clear()
        return key

    def done(self, key: Key) -> None:
        """Mark a key as handled. If it was added again in the meantime, it is handled again."""
        self._handled.discard(key)
        if not self._handled:
            self._idle.set()
        if key in self._waiting:
            self._put(key)

    async def drain(self) -> None:
        """Return no more keys from `get`, and wait until all keys in work are done."""
        self._draining = True
        while not self._queue.empty():
            self._queue.get_nowait()
        await self._idle.wait()

    def close(self) -> None:
        """Cancel all scheduled keys."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _put(self, key: Key) -> None:
        if not self._draining:
            self._queue.put_nowait(key)

    def retry(self, key: Key) -> float:
        """Schedule a failed key again, with a growing delay. Return the delay in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(_LAST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(failures, 10))
        self.add_after(key, delay)
        return delay

    def succeeded(self, key: Key) -> None:
        """Reset the delay of a key."""
        self._failures.pop(key, None)
