"""When to try a server again that could not be reached."""

import random
import time
from collections.abc import Callable
from typing import Final

_FIRST_SECONDS: Final = 0.05
_LONGEST_SECONDS: Final = 1.0


class Circuit:
    """Open after a failed attempt to connect, for a time that doubles with each failure in a row, up to a second.

    Meanwhile calls fail at once instead of each trying for itself. The time is shortened at random by up to a half, so
    that the clients of a server that returns do not all come back in the same instant.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, spread: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._spread = spread
        self._failures = 0
        self._closed_from = 0.0

    def failed(self) -> None:
        """An attempt failed."""
        longest = min(_LONGEST_SECONDS, _FIRST_SECONDS * 2 ** min(self._failures, 10))
        self._failures += 1
        self._closed_from = self._clock() + longest * (1 - self._spread() / 2)

    def succeeded(self) -> None:
        """An attempt succeeded."""
        self._failures = 0
        self._closed_from = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the last attempt failed; also when the next one may be made now."""
        return self._failures > 0

    @property
    def seconds_left(self) -> float:
        """Seconds until the next attempt; 0 when it may be made now."""
        return max(0.0, self._closed_from - self._clock()) if self._failures else 0.0
