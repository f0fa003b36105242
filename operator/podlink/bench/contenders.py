"""The contenders that are Python, each of which runs in a process of its own.

redis-py is given keys that were made in advance; our own calls make theirs of namespace, uid and service.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import cycle
from typing import Any, Final

import redis
import redis.asyncio

from podlink.bench.plan import CONNECTIONS, PIPELINE, POD, SERVICE, Plan, link_arguments, uids
from podlink.domain import keys
from podlink.store.aio.executor import StatefulExecutor
from podlink.store.blocking.executor import StatefulExecutor as BlockingExecutor

_READ: Final = 1000


async def _rate(
    plan: Plan, tasks: int, call: Callable[..., Awaitable[Any]], arguments: Iterable[Sequence[Any]]
) -> float:
    """How often a second `call` returns, when so many tasks call it with one of the arguments after the other.

    Calls of many tasks return in flocks. The clock is read when those of one certain task return, so that whole flocks
    are counted.
    """
    upcoming = cycle(arguments)
    done, stopped = 0, False

    async def work() -> None:
        nonlocal done
        for each in upcoming:
            await call(*each)
            done += 1
            if stopped:
                break

    async def work_until(moment: float) -> tuple[int, float]:
        nonlocal done
        for each in upcoming:
            await call(*each)
            done += 1
            if (now := time.perf_counter()) >= moment:
                return done, now
        raise ValueError("there are no arguments")

    async with asyncio.TaskGroup() as group:
        for _ in range(tasks - 1):
            group.create_task(work())
        before, started = await work_until(time.perf_counter() + plan.warm_up_seconds)
        after, ended = await work_until(started + plan.seconds)
        stopped = True
    return (after - before) / (ended - started)


async def _microseconds(plan: Plan, call: Callable[..., Awaitable[Any]], arguments: Iterable[Sequence[Any]]) -> float:
    """Median time of a call that is alone."""
    taken: list[float] = []
    upcoming = cycle(arguments)
    ends = time.perf_counter() + plan.warm_up_seconds + plan.seconds
    starts = ends - plan.seconds
    now = time.perf_counter()
    while now < ends:
        each = next(upcoming)
        before = time.perf_counter()
        await call(*each)
        now = time.perf_counter()
        if now > starts:
            taken.append((now - before) * 1e6)
    return statistics.median(taken)


def _blocking_rate(plan: Plan, call: Callable[..., Any], arguments: Iterable[Sequence[Any]]) -> float:
    upcoming = cycle(arguments)
    ends = time.perf_counter() + plan.warm_up_seconds
    while time.perf_counter() < ends:
        call(*next(upcoming))
    done = 0
    started = now = time.perf_counter()
    ends = started + plan.seconds
    while now < ends:
        call(*next(upcoming))
        done += 1
        now = time.perf_counter()
    return done / (now - started)


def _links(plan: Plan) -> list[tuple[str, str, str, int]]:
    return [(plan.namespace, user, SERVICE, POD) for user in uids(plan)]


def _reads(plan: Plan) -> list[tuple[str, str, str]]:
    return [(plan.namespace, user, SERVICE) for user in uids(plan)]


def _raw_links(plan: Plan) -> list[tuple[str | int, ...]]:
    return [link_arguments(plan, user) for user in uids(plan)]


def _groups(plan: Plan) -> list[Sequence[str]]:
    users = uids(plan)
    return [users[start : start + PIPELINE] for start in range(0, len(users), PIPELINE)]


async def podlink_links(plan: Plan, tasks: int) -> float:
    """Single link calls a second."""
    async with StatefulExecutor.from_url(plan.url) as executor:
        return await _rate(plan, tasks, executor.set_linked_pod, _links(plan))


async def podlink_reads(plan: Plan, tasks: int) -> float:
    """Single reads a second, without a cache."""
    async with StatefulExecutor.from_url(plan.url) as executor:
        return await _rate(plan, tasks, executor.get_linked_pod, _reads(plan))


async def podlink_bulk(plan: Plan) -> float:
    """Links a second by calls that set 100 each."""
    groups = [(plan.namespace, dict.fromkeys(group, POD), SERVICE) for group in _groups(plan)]
    async with StatefulExecutor.from_url(plan.url) as executor:
        return PIPELINE * await _rate(plan, CONNECTIONS, executor.set_linked_pods, groups)


async def podlink_cached(plan: Plan) -> float:
    """Microseconds of one read that the cache answers."""
    reads = _reads(plan)[:_READ]
    async with StatefulExecutor.from_url(plan.url, cache=True) as executor:
        for each in reads:
            await executor.get_linked_pod(*each)
        rounds = 0
        started = now = time.perf_counter()
        while now < started + plan.seconds:
            for each in reads:
                await executor.get_linked_pod(*each)
            rounds += 1
            now = time.perf_counter()
            # Invalidations are read in between, as in a service.
            await asyncio.sleep(0)
    return (now - started) / rounds / len(reads) * 1e6


async def podlink_alone(plan: Plan) -> float:
    """Microseconds of one link call on an idle executor."""
    async with StatefulExecutor.from_url(plan.url) as executor:
        return await _microseconds(plan, executor.set_linked_pod, _links(plan))


def podlink_blocking(plan: Plan) -> float:
    """Link calls a second of one thread."""
    with BlockingExecutor.from_url(plan.url) as executor:
        return _blocking_rate(plan, executor.set_linked_pod, _links(plan))


async def redis_py_links(plan: Plan) -> float:
    """EVALSHA calls a second of redis-py as it comes."""
    async with redis.asyncio.Redis.from_url(plan.url) as client:
        return await _rate(plan, CONNECTIONS, client.evalsha, _raw_links(plan))


async def redis_py_pipelines(plan: Plan) -> float:
    """EVALSHA calls a second in redis-py's pipelines."""
    async with redis.asyncio.Redis.from_url(plan.url) as client:

        async def send(calls: Sequence[tuple[str | int, ...]]) -> None:
            async with client.pipeline(transaction=False) as pipeline:
                for arguments in calls:
                    pipeline.evalsha(*arguments)  # type: ignore[arg-type] # str and int, in the right places
                await pipeline.execute()

        groups = [([link_arguments(plan, user) for user in group],) for group in _groups(plan)]
        return PIPELINE * await _rate(plan, CONNECTIONS, send, groups)


async def redis_py_alone(plan: Plan) -> float:
    """Microseconds of one EVALSHA on an idle client."""
    async with redis.asyncio.Redis.from_url(plan.url) as client:
        return await _microseconds(plan, client.evalsha, _raw_links(plan))


async def redis_py_get(plan: Plan) -> float:
    """Microseconds of one GET on an idle client."""
    async with redis.asyncio.Redis.from_url(plan.url) as client:
        reads = [(keys.link_key(plan.namespace, user, SERVICE),) for user in uids(plan)[:_READ]]
        return await _microseconds(plan, client.get, reads)


def redis_py_blocking(plan: Plan) -> float:
    """EVALSHA calls a second of one thread."""
    with redis.Redis.from_url(plan.url) as client:
        return _blocking_rate(plan, client.evalsha, _raw_links(plan))
