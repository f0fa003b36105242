"""Which tests run in one process when pytest-xdist runs several, and which begin first.

`--dist=loadscope --no-loadscope-reorder` uses this. The marker `xdist_group` does not work: pytest-xdist 3.8 does
not see it with pytest 9.2.
"""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

_MADE_ONCE = re.compile(r"tests/(image|package)/|tests/deploy/test_(alerts|dashboard|metrics)\.py")
"""These tests share a fixture that takes long to make: the image, the wheel, or the metrics of an operator."""

_BY_ITSELF = "tests/faults/"
"""Each of these tests has servers and operators of its own, and takes long."""

_ON_SHARED_SERVERS = re.compile(r"(tests/store/[^:]*)::.*[\[-](valkey|redis|tls|sentinel|cluster)(?=[-\]])")

_SLOW_FIRST = ("image", "faults", "deploy", "proofs", "package", "cluster", "docs", "store", "unit")
"""The directories of tests, those with the slowest groups first."""


def group(nodeid: str) -> str:
    """Return the name of the group of a test: its file, if nothing else is better."""
    if nodeid.startswith(_BY_ITSELF):
        return nodeid
    if found := _MADE_ONCE.match(nodeid):
        return found[1] or "deploy"
    if found := _ON_SHARED_SERVERS.match(nodeid):
        return f"{found[1]} {found[2]}"
    return nodeid.partition("::")[0]


def order(nodeid: str) -> tuple[int, bool]:
    """Return what to sort tests by. Groups begin in the order of their first tests, and the last ones should be short.

    Otherwise one process works at the end, and the others have nothing to do.
    """
    directory = nodeid.split("/")[1]
    rank = _SLOW_FIRST.index(directory) if directory in _SLOW_FIRST else 0
    return rank, _ON_SHARED_SERVERS.match(nodeid) is not None


class Groups(LoadScopeScheduling):
    """Gives a group to the next process that is free."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)
