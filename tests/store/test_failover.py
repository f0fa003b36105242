"""The primary is lost under load: nothing that was confirmed is lost with it, and no caller is left in the dark."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from effort import by_profile
from sandbox.redis_cluster import ClusterSet
from sandbox.redis_sentinel import SentinelSet
from store import failover

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = by_profile(2, 10)  # one with SIGKILL, one with SIGSTOP, and so on


@pytest.mark.parametrize("start", [SentinelSet, ClusterSet], ids=["sentinel", "cluster"])
async def test_failover_under_load(start: Callable[[], SentinelSet | ClusterSet]) -> None:
    with start() as servers:
        # Where there are two, Sentinels may promote the one that has less.
        replicas = 2 if isinstance(servers, SentinelSet) else 1
        report = await failover.run(servers, ROUNDS, "replicated", replicas)
        most = most_connections(servers)
    assert len(report.rounds) == ROUNDS
    assert report.left_open == 0
    for result in report.rounds:
        assert result.confirmed > failover.ENOUGH
        assert result.lost == 0
        assert result.applied_though_denied == 0
        assert result.foreign == []
        assert result.untyped == []
        assert result.hung == 0
        assert result.slowest < failover.HUNG_SECONDS
        assert result.connections[1] <= most
        assert result.tasks[1] <= result.tasks[0]


def most_connections(servers: SentinelSet | ClusterSet) -> int:
    """Two to each server, since all were primaries, and redis-py's to those that tell where the primaries are.

    Sentinels are asked for each of the two. A primary that was demoted without being lost keeps its connections.
    """
    asked = 2 * len(servers.sentinels) if isinstance(servers, SentinelSet) else len(servers.servers)
    return 2 * len(servers.servers) + asked
