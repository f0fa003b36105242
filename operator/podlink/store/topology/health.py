"""How an executor's connections are, for those who watch over it."""

from collections.abc import Iterable
from typing import NamedTuple


class Health(NamedTuple):
    """The state of an executor at one moment.

    Attributes:
        connections: that are open, to all servers.
        circuits_open: servers that could not be reached when they were last tried; calls to them fail at once for a
            time.
        script_reloads: how often a server had lost a script (SCRIPT FLUSH) and got it again, so far.
        opened: connections that were opened so far. Each of them may have been to another primary.
    """

    connections: int = 0
    circuits_open: int = 0
    script_reloads: int = 0
    opened: int = 0


def added(many: Iterable[Health]) -> Health:
    """Of several servers together."""
    return Health(*(sum(numbers) for numbers in zip(Health(), *many, strict=True)))
