"""Links kept in the process, for gateways that look the same ones up again and again.

The server remembers which links this connection has read, and says when one of them changes (RESP3 client tracking).
What it says comes down the same connection, in order with the replies, so an entry is stale for the time that such a
message travels. Of three things the server says nothing, or too late: that a link has expired, that its connection to
us is gone, and what it would have said meanwhile. So no entry outlives the link's own time to live, all entries go when
the connection does, and a connection on which nothing is heard is asked for a sign of life.
"""

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from podlink.domain import keys
from podlink.store.operations import Operation

Link: TypeAlias = tuple[str, str, str]
"""Namespace, uid and service."""

_FOR_EVER: Final = float("inf")
_PERMANENT: Final = -1


class LinkCache:
    """Links and the moments until which they may be told."""

    def __init__(self, size: int) -> None:
        """Hold nothing yet.

        Args:
            size: entries kept at most; the oldest goes first.
        """
        self._size = size
        self.entries: dict[Link, tuple[int | None, float]] = {}
        """What is known: podId, or None for no link; and until when, by the monotonic clock."""
        self._asked: dict[Link, object] = {}

    def asks(self, link: Link) -> object:
        """A link is about to be read; the token is for `read_ended`."""
        token = self._asked[link] = object()
        return token

    def read_ended(self, link: Link, token: object) -> bool:
        """The read is over; says whether it was answered, or may be answered, with what still holds."""
        if self._asked.get(link) is not token:
            return False
        del self._asked[link]
        return True

    def keep(self, link: Link, pod: int | None, ttl_ms: int, asked_at: float) -> None:
        """Keep what was read.

        Args:
            link: what was read.
            pod: podId, or None for no link.
            ttl_ms: milliseconds to live when it was read; -1 for a permanent link.
            asked_at: monotonic time at which it was asked for.
        """
        if len(self.entries) >= self._size and link not in self.entries:
            del self.entries[next(iter(self.entries))]
        # Counted from before the question, so that the entry goes before the link does.
        ends = _FOR_EVER if pod is None or ttl_ms == _PERMANENT else asked_at + ttl_ms / 1000
        self.entries[link] = pod, ends

    def forget(self, link: Link) -> None:
        """Something may have changed this link."""
        self.entries.pop(link, None)
        self._asked.pop(link, None)

    def clear(self) -> None:
        """Anything may have changed."""
        self.entries.clear()
        self._asked.clear()

    def hear(self, push: Any) -> None:
        """Take in what the server sent of its own accord: `["invalidate", [keys]]`, or no keys for all of them."""
        if push[0] != b"invalidate":
            return
        if push[1] is None:
            self.clear()
            return
        for key in push[1]:
            link = keys.link_of_key(key.decode(errors="replace"))
            if link:
                self.forget(link)

    def forget_written(self, many: Sequence[Operation[Any]]) -> None:
        """Forget the links that operations have written, or may have."""
        for operation in many:
            shape = operation.shape
            if operation.uid and shape.service and shape.writes:
                self.forget((str(shape.namespace), operation.uid, shape.service))
