"""When loads are recounted, how fast, and what is told of it; the recount itself is for the tests of the store."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest

from podlink.controller import recounter
from podlink.controller.recounter import Recounter
from podlink.domain.errors import PodLinkError, RedisUnavailable, ScriptError
from podlink.metrics import Metrics
from podlink.store.counting import Recount, Repair
from podlink.store.counting.inquiry import Pace
from sandbox.processes import until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from podlink.controller.monitor import RedisMonitor
    from podlink.store.aio.executor import StatefulExecutor

NOTHING = Recount(links=0, services=0, walks=1, loads=(), members=0, left_out=0, reason=None)


class FakeMonitor:
    def __init__(self) -> None:
        self.available = asyncio.Event()
        self.available.set()
        self.reported: list[PodLinkError] = []

    def report(self, error: PodLinkError) -> None:
        self.reported.append(error)
        self.available.clear()


class Recounts:
    """Stands in for the recount: what each is to return or raise, and which are under way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.outcomes: list[Recount | PodLinkError] = []
        self.started = 0
        self.under_way = 0
        self.namespaces: object = None
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.monitor = FakeMonitor()
        self.metrics = Metrics()
        monkeypatch.setattr(recounter, "recount", self._recount)

    async def _recount(self, _executor: object, namespaces: object) -> Recount:
        assert self.under_way == 0
        self.namespaces = namespaces
        self.started += 1
        self.under_way += 1
        try:
            await self.may_end.wait()
        finally:
            self.under_way -= 1
        outcome = self.outcomes.pop(0) if self.outcomes else NOTHING
        if isinstance(outcome, PodLinkError):
            raise outcome
        return outcome

    def recounter(self, period_seconds: float) -> Recounter:
        return Recounter(
            namespaces=("games",),
            period_seconds=period_seconds,
            executor=cast("StatefulExecutor", None),
            monitor=cast("RedisMonitor", self.monitor),
            metrics=self.metrics,
        )

    @asynccontextmanager
    async def running(self, period_seconds: float) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.recounter(period_seconds).run())
        yield task
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    def metric(self, name: str, **labels: str) -> Any:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
async def recounts(monkeypatch: pytest.MonkeyPatch) -> Recounts:
    return Recounts(monkeypatch)


async def test_zero_seconds_mean_never(recounts: Recounts) -> None:
    await asyncio.wait_for(recounts.recounter(0).run(), timeout=5)
    assert recounts.started == 0


async def test_one_at_the_start_and_one_a_period_later(recounts: Recounts) -> None:
    async with recounts.running(0.01):
        await until_async(lambda: recounts.started > 2, 5, "three recounts")
    assert recounts.namespaces == ("games",)
    async with recounts.running(3600):
        started = recounts.started
        await until_async(lambda: recounts.started > started, 5, "the recount at the start")
        await until_async(lambda: recounts.metric("podlink_recount_seconds_count") >= recounts.started, 5, "its end")
        assert recounts.started == started + 1


async def test_a_slow_one_is_not_overtaken_and_ends_with_the_operator(recounts: Recounts) -> None:
    recounts.may_end.clear()
    async with recounts.running(0.001):
        await until_async(lambda: recounts.under_way, 5, "a recount to be under way")
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert recounts.started == 1
    assert recounts.under_way == 0


async def test_a_redis_that_is_away_is_told_of_once_and_waited_for(
    recounts: Recounts, caplog: pytest.LogCaptureFixture
) -> None:
    recounts.outcomes = [RedisUnavailable("connection refused")]
    async with recounts.running(0.01):
        await until_async(lambda: recounts.monitor.reported, 5, "the failure to be reported")
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert recounts.started == 1
        (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert warning.getMessage() == "recount failed: connection refused; tried again in 0.01 s"

        recounts.monitor.available.set()
        await until_async(lambda: recounts.started > 1, 5, "the next recount")
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


async def test_a_server_that_refuses_is_asked_again_a_period_later(
    recounts: Recounts, caplog: pytest.LogCaptureFixture
) -> None:
    recounts.outcomes = [ScriptError("scan: SCAN failed: NOPERM")]
    async with recounts.running(3600):
        await until_async(lambda: caplog.records, 5, "the failure to be told of")
    assert recounts.started == 1
    assert caplog.records[0].getMessage() == "recount failed: scan: SCAN failed: NOPERM; tried again in 3600 s"
    assert recounts.monitor.reported == []


async def test_what_was_done_is_one_line_and_counted(recounts: Recounts, caplog: pytest.LogCaptureFixture) -> None:
    loads = tuple(Repair("games", "lobby", pod, pod, 7) for pod in range(7))
    spoilt = ScriptError("read_links: WRONGTYPE")
    recounts.outcomes = [Recount(links=9, services=2, walks=6, loads=loads, members=3, left_out=4, reason=spoilt)]
    with caplog.at_level(logging.INFO, "podlink"):
        async with recounts.running(3600):
            await until_async(lambda: caplog.records, 5, "the recount to be told of")
    (record,) = caplog.records
    before, _, after = record.getMessage().partition(" s (walks: 6): ")
    assert before.startswith("recounted 9 links to 2 services in ")
    assert after == (
        "repaired 7 loads, 3 units of temporary links (games/lobby pod 0: 0 -> 7; games/lobby pod 1: 1 -> 7;"
        " games/lobby pod 2: 2 -> 7; games/lobby pod 3: 3 -> 7; games/lobby pod 4: 4 -> 7; 2 more;"
        " 4 keys left out, the first: read_links: WRONGTYPE)"
    )
    assert recounts.metric("podlink_recount_repairs_total", kind="load") == 7
    assert recounts.metric("podlink_recount_repairs_total", kind="temporary_link") == 3


async def test_the_pace_is_even_and_makes_up_for_nothing() -> None:
    now, slept = 0.0, []

    async def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    pace = Pace(100, clock=lambda: now, sleep=sleep)
    await pace.spend(50)
    await pace.spend(10)
    assert slept == pytest.approx([0.5, 0.1])
    now += 60  # a slow server, or a pause: what it took is not added to the next slice
    await pace.spend(50)
    assert slept[-1] == pytest.approx(0.5)
