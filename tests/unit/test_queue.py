"""The queue promises what client-go's does: nothing is lost, nothing is done twice at a time, failures slow down."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlink.controller.queue import WorkQueue
from sandbox.processes import until_async

if TYPE_CHECKING:
    from collections.abc import Callable

A, B, C = ("games", "a"), ("games", "b"), ("games", "c")
SOON, MUCH_LATER = 0.001, 3600.0


async def soon(queue: WorkQueue) -> tuple[str, str]:
    """The next key; the test fails if there is none within seconds."""
    async with asyncio.timeout(5):
        return await queue.get()


async def idle(queue: WorkQueue) -> bool:
    """Whether nobody who asks now is given a key."""
    asking = asyncio.create_task(queue.get())
    for _ in range(5):
        await asyncio.sleep(0)
    if asking.done():
        return False
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    return True


async def no_alarm_is_set(queue: WorkQueue) -> None:
    await until_async(lambda: not queue._timers, timeout=5, what="the delay to end")


async def test_keys_come_in_the_order_they_were_added() -> None:
    queue = WorkQueue()
    queue.update([B, A])
    queue.update([C])
    assert [await soon(queue) for _ in range(3)] == [B, A, C]


async def test_key_waits_once_however_often_it_is_added() -> None:
    queue = WorkQueue()
    queue.update([A, A])
    queue.update([A])
    assert len(queue) == 1
    assert await soon(queue) == A
    assert await idle(queue)
    queue.done(A)
    assert await idle(queue)


async def test_key_keeps_its_place_when_it_is_added_again() -> None:
    queue = WorkQueue()
    queue.update([A, B])
    queue.update([A])
    assert [await soon(queue), await soon(queue)] == [A, B]


async def test_key_added_while_it_is_handled_is_handled_again_afterwards() -> None:
    queue = WorkQueue()
    queue.update([A])
    await soon(queue)
    queue.update([A])
    queue.update([A])
    assert len(queue) == 1
    assert await idle(queue), "no second worker gets it at the same time"
    queue.done(A)
    assert await soon(queue) == A
    queue.done(A)
    assert await idle(queue)


async def test_other_keys_go_on_while_one_is_handled() -> None:
    queue = WorkQueue()
    queue.update([A])
    await soon(queue)
    queue.update([A, B])
    assert await soon(queue) == B


async def test_worker_that_gives_up_waiting_loses_no_key() -> None:
    queue = WorkQueue()
    assert await idle(queue)
    queue.update([A])
    assert await soon(queue) == A


async def test_key_comes_after_its_delay() -> None:
    queue = WorkQueue()
    queue.add_after(A, MUCH_LATER)
    assert await idle(queue)
    assert len(queue) == 0, "it does not wait yet"
    queue.add_after(B, SOON)
    assert await soon(queue) == B


@pytest.mark.parametrize("seconds", [0, -5])
async def test_delay_that_is_over_already(seconds: float) -> None:
    queue = WorkQueue()
    queue.add_after(A, seconds)
    assert await soon(queue) == A


@pytest.mark.parametrize("delays", [(SOON, MUCH_LATER), (MUCH_LATER, SOON), (MUCH_LATER, SOON, MUCH_LATER)])
async def test_earliest_of_several_delays_holds(delays: tuple[float, ...]) -> None:
    queue = WorkQueue()
    for delay in delays:
        queue.add_after(A, delay)
    assert await soon(queue) == A
    queue.done(A)
    assert not queue._timers, "the later ones are forgotten"


async def test_delays_of_different_keys_do_not_meet() -> None:
    queue = WorkQueue()
    queue.add_after(A, MUCH_LATER)
    queue.add_after(B, SOON)
    assert await soon(queue) == B


async def test_delay_that_ends_while_the_key_waits() -> None:
    queue = WorkQueue()
    queue.add_after(A, SOON)
    queue.update([A])
    await no_alarm_is_set(queue)
    assert await soon(queue) == A
    queue.done(A)
    assert await idle(queue)


async def test_delay_holds_though_the_key_is_handled_before() -> None:
    queue = WorkQueue()
    queue.add_after(A, 0)
    queue.update([A])
    assert await soon(queue) == A
    queue.done(A)
    assert await soon(queue) == A


async def test_delay_that_ends_while_the_key_is_handled() -> None:
    queue = WorkQueue()
    queue.update([A])
    await soon(queue)
    queue.add_after(A, SOON)
    await no_alarm_is_set(queue)
    assert await idle(queue)
    queue.done(A)
    assert await soon(queue) == A


async def test_failures_slow_down_to_half_a_minute() -> None:
    queue = WorkQueue()
    delays = [queue.retry(A) for _ in range(2000)]
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays == sorted(delays)
    assert delays[-1] == 30
    assert queue.retry(B) == 0.1, "each key has its own failures"
    queue.succeeded(A)
    assert queue.retry(A) == 0.1


async def test_failed_key_comes_again() -> None:
    queue = WorkQueue()
    queue.update([A])
    await soon(queue)
    queue.retry(A)
    queue.done(A)
    assert await soon(queue) == A


async def test_success_of_an_unknown_key_is_no_news() -> None:
    WorkQueue().succeeded(A)


async def test_news_of_a_key_that_waits_for_its_retry_is_not_delayed() -> None:
    queue = WorkQueue()
    for _ in range(12):
        queue.retry(A)
    queue.update([A])
    assert await soon(queue) == A


@given(st.lists(st.sampled_from(["add", "again", "work"]), max_size=40), st.integers(1, 4))
def test_every_wish_is_followed_by_a_look_and_no_key_has_two_workers(steps: list[str], workers: int) -> None:
    asyncio.run(_work_through(steps, workers))


async def _work_through(steps: list[str], workers: int) -> None:
    queue = WorkQueue()
    wished: dict[tuple[str, str], int] = {}
    seen: dict[tuple[str, str], int] = {}
    busy: Counter[tuple[str, str]] = Counter()
    rest = asyncio.Event()

    async def work() -> None:
        while True:
            key = await queue.get()
            busy[key] += 1
            assert busy[key] == 1
            seen[key] = wished[key]  # it sees the world as of this wish
            await asyncio.sleep(0)
            busy[key] -= 1
            queue.done(key)
            if seen == wished:
                rest.set()

    tasks = [asyncio.create_task(work()) for _ in range(workers)]
    act: dict[str, Callable[[int], None]] = {
        "add": lambda step: _wish(queue, wished, [A, B, C][step % 3], step),
        "again": lambda step: _wish(queue, wished, A, step),
    }
    for step, what in enumerate(steps):
        if what == "work":
            await asyncio.sleep(0)
        else:
            act[what](step)
    while seen != wished:
        rest.clear()
        async with asyncio.timeout(5):
            await rest.wait()
    assert len(queue) == 0
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended
    assert seen == wished


def _wish(queue: WorkQueue, wished: dict[tuple[str, str], int], key: tuple[str, str], step: int) -> None:
    wished[key] = step
    queue.update([key])
