"""What repeated walks know of one pod, and what that proves about its load."""

from array import array
from typing import NamedTuple


class Bounds(NamedTuple):
    """Between what a pod's number of links, and its load, were at any time between the first walk and the last.

    Attributes:
        always: it had at least so many links, those that every walk saw.
        ever: and at most so many, those that any walk saw.
        least: its load was at least that,
        most: and at most that.
    """

    always: int
    ever: int
    least: int
    most: int

    @property
    def lacks(self) -> int:
        """By how much the load has to change, at the least; 0 when it may be right."""
        return max(0, self.always - self.most) - max(0, self.least - self.ever)


class Tally:
    """Which links walks have seen at a pod, and between which values its load was in the meantime.

    A walk appends, so what it costs is 8 bytes a link; that a uid came twice (SCAN may do that) shows at its end.
    """

    __slots__ = ("_always", "_ever", "_least", "_most", "_seen")

    def __init__(self) -> None:
        # Hashes of uids: that two of a million have the same is as likely as 1 in 40 million.
        self._seen = array("q")
        self._always = array("q")
        self._ever = array("q")
        self._least: int | None = None
        self._most: int | None = None

    def see(self, uid: str) -> None:
        """Take in that this walk found the uid linked to the pod."""
        self._seen.append(hash(uid))

    def end_walk(self, *, first: bool) -> None:
        """Take in what this walk has seen, as a whole."""
        seen = set(self._seen)
        self._always = array("q", seen if first else seen.intersection(self._always))
        self._ever = array("q", seen.union(self._ever))
        self._seen = array("q")

    def read(self, load: int) -> None:
        """Take in what the load is now."""
        self._least = load if self._least is None else min(load, self._least)
        self._most = load if self._most is None else max(load, self._most)

    @property
    def links(self) -> int:
        """How many links were seen at the pod in any walk."""
        return len(self._ever)

    @property
    def bounds(self) -> Bounds | None:
        """What is proved; None as long as the load was not read."""
        if self._least is None or self._most is None:
            return None
        return Bounds(len(self._always), len(self._ever), self._least, self._most)
