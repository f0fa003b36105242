"""The primary is lost under load: nothing that was confirmed is lost with it, and no caller is left in the dark."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sandbox.redis_cluster import ClusterSet
from sandbox.redis_sentinel import SentinelSet
from store import failover

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 2  # one with SIGKILL, one with SIGSTOP


@pytest.mark.parametrize("start", [SentinelSet, ClusterSet], ids=["sentinel", "cluster"])
async def test_failover_under_load(start: Callable[[], SentinelSet | ClusterSet]) -> None:
    with start() as servers:
        report = await failover.run(servers, ROUNDS, "replicated")
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
        for before, after in (result.connections, result.tasks):
            assert after <= before
