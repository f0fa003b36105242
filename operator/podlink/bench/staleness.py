"""How long a cached read goes on showing the old link after another client, in another process, changed it.

The clock starts before the write is sent, so its round trip is counted as well, and stops when a read shows the new
link. The reader reads in every turn of its event loop.
"""

import asyncio
import multiprocessing
import random
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any, Final

from podlink.bench.plan import SERVICE, Plan
from podlink.domain import keys
from podlink.domain.errors import PodLinkError
from podlink.store.aio.executor import StatefulExecutor
from podlink.store.blocking.executor import StatefulExecutor as BlockingExecutor

_END: Final = keys.LAST_POD_ID
"""The podId that is written last."""

_LEAST_WRITES: Final = 20
_PAUSE_SECONDS: Final = 0.001, 0.003
_PATIENCE_SECONDS: Final = 10


def staleness(plan: Plan) -> dict[str, float]:
    """Milliseconds, the median and the 99th percentile of all writes of a round."""
    # A fresh process, for a forked one would have a copy of whatever this one holds open.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    writer = context.Process(target=_write, args=(plan, theirs), daemon=True)
    writer.start()
    theirs.close()
    try:
        _receive(ours)
        seen = asyncio.run(_read(plan, ours))
        sent = _receive(ours)
    finally:
        writer.kill()
        writer.join()
    milliseconds = stale_milliseconds(sent, seen)
    return {
        "staleness-p50": statistics.median(milliseconds),
        "staleness-p99": statistics.quantiles(milliseconds, n=100)[98],
    }


def stale_milliseconds(sent: list[float], seen: list[tuple[int, float]]) -> list[float]:
    """How long each value took to show.

    Args:
        sent: when the values 1, 2, 3... were sent, seconds.
        seen: values and when each showed first, in the order of both. One that was overwritten before any read counts
            as seen when a later one was.
    """
    shown = iter(seen)
    value, at = next(shown)
    milliseconds: list[float] = []
    for written, sent_at in enumerate(sent, start=1):
        while value < written:
            value, at = next(shown)
        milliseconds.append((at - sent_at) * 1e3)
    return milliseconds


async def _read(plan: Plan, writer: Connection) -> list[tuple[int, float]]:
    seen: list[tuple[int, float]] = []
    last: int | None = None
    deadline = time.monotonic() + plan.seconds + _PATIENCE_SECONDS
    async with StatefulExecutor.from_url(plan.url, cache=True) as executor:
        await executor.get_linked_pod(plan.namespace, plan.extra_uid, SERVICE)
        writer.send("go")
        while last != _END:
            pod = await executor.get_linked_pod(plan.namespace, plan.extra_uid, SERVICE)
            now = time.monotonic()
            if pod != last and pod is not None:
                seen.append((pod, now))
                last = pod
            if now > deadline:
                raise TimeoutError(f"a cached read goes on showing pod {last}")
            await asyncio.sleep(0)
    return seen


def _write(plan: Plan, reader: Connection) -> None:
    pause = random.Random(plan.links)  # noqa: S311 - so that it does not beat with the reader's loop
    sent: list[float] = []
    try:
        with BlockingExecutor.from_url(plan.url) as executor:
            executor.remove_linked_pod(plan.namespace, plan.extra_uid, SERVICE)
            reader.send("ready")
            reader.recv()
            ends = time.monotonic() + plan.seconds
            while len(sent) < _LEAST_WRITES or time.monotonic() < ends:
                time.sleep(pause.uniform(*_PAUSE_SECONDS))
                # CLOCK_MONOTONIC is one clock for all processes of a machine.
                sent.append(time.monotonic())
                executor.set_linked_pod(plan.namespace, plan.extra_uid, SERVICE, len(sent))
            executor.set_linked_pod(plan.namespace, plan.extra_uid, SERVICE, _END)
        reader.send(sent)
    except PodLinkError as error:
        reader.send(error)


def _receive(writer: Connection) -> Any:
    if not writer.poll(_PATIENCE_SECONDS):
        raise TimeoutError(f"the writer said nothing within {_PATIENCE_SECONDS} seconds")
    said = writer.recv()
    if isinstance(said, PodLinkError):
        raise said
    return said
