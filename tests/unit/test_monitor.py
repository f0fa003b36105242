"""Which answers of a Redis mean that data was lost, of an operator that works and of one that stands by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from podlink.controller.monitor import RedisMonitor
from podlink.metrics import Metrics
from podlink.store.topology.health import Health

if TYPE_CHECKING:
    from collections.abc import Sequence

    from podlink.store.aio.executor import StatefulExecutor
    from podlink.store.operations import Operation


class Redis:
    """One server, with the marker of an operator or without."""

    def __init__(self) -> None:
        self.marker: str | None = None
        self.opened = 1

    def health(self) -> Health:
        return Health(opened=self.opened)

    async def nodes(self) -> list[None]:
        return [None]

    async def run(self, operation: Operation[Any]) -> None:
        self.marker = str(operation.args[0])

    async def run_many(self, _: Sequence[Operation[Any]]) -> list[Any]:
        return [self.marker, None, "run id"]


class Watcher:
    def __init__(self, redis: Redis) -> None:
        self.metrics = Metrics()
        self.doubts: list[str] = []
        executor = cast("StatefulExecutor", redis)
        self.monitor = RedisMonitor(executor, self.metrics, name="redis", on_doubt=self.doubts.append)

    async def probe(self) -> float | None:
        """Look once; return the losses told of so far."""
        await self.monitor._probe()
        return self.metrics.registry.get_sample_value("podlink_redis_data_losses_total")


@pytest.fixture
def redis() -> Redis:
    return Redis()


async def test_a_first_marker_is_no_loss_to_a_standby(redis: Redis) -> None:
    leader, standby = Watcher(redis), Watcher(redis)
    assert await standby.probe() == 0
    await leader.monitor.mark()
    assert await standby.probe() == 0
    assert await leader.probe() == 0


async def test_a_loss_is_told_once_by_each(redis: Redis) -> None:
    leader, standby = Watcher(redis), Watcher(redis)
    await leader.monitor.mark()
    await standby.probe()
    redis.marker = None
    assert await leader.probe() == 1
    assert await standby.probe() == 1
    await leader.monitor.mark()
    assert await leader.probe() == 1
    assert await standby.probe() == 1
    assert leader.doubts == standby.doubts == ["data_loss"]


async def test_a_loss_that_a_sweep_meets_first_is_told_too(redis: Redis) -> None:
    leader = Watcher(redis)
    await leader.monitor.mark()
    redis.marker = None
    await leader.monitor.mark()
    assert await leader.probe() == 1


async def test_another_redis_in_its_place_is_a_loss(redis: Redis) -> None:
    leader = Watcher(redis)
    await leader.monitor.mark()
    redis.marker = "another"
    assert await leader.probe() == 1
