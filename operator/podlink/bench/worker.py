"""A process that measures one contender, `python -m podlink.bench.worker NAME`: a line of JSON in, one out, each round.

It stays for all rounds, so that Python starts once, and is connected only while it measures. One that fails answers
with the reason; its traceback is nothing for the user.
"""

import asyncio
import inspect
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

import msgspec

from podlink.bench import contenders, server, sockets, staleness, tool
from podlink.bench.plan import CONNECTIONS, PIPELINE, NotMeasuredError, Plan
from podlink.domain.errors import PodLinkError

Figures: TypeAlias = float | dict[str, float]
"""By name; or the one that has the name of the contender."""

_MANY_TASKS: Final = 500

MEASURES: Final[Mapping[str, Callable[[Plan], Figures | Awaitable[Figures]]]] = {
    "redis-benchmark": lambda plan: tool.link_rate(plan, 1),
    "redis-benchmark-p100": lambda plan: tool.link_rate(plan, PIPELINE),
    "redis-benchmark-get": tool.read_rate,
    "raw-single": lambda plan: sockets.link_rate(plan, 1),
    "raw-pipeline": lambda plan: sockets.link_rate(plan, PIPELINE),
    "raw-get": sockets.read_microseconds,
    "redis-py": contenders.redis_py_links,
    "redis-py-pipeline": contenders.redis_py_pipelines,
    "redis-py-blocking": contenders.redis_py_blocking,
    "redis-py-alone": contenders.redis_py_alone,
    "redis-py-get": contenders.redis_py_get,
    "podlink-50": lambda plan: contenders.podlink_links(plan, CONNECTIONS),
    "podlink-500": lambda plan: contenders.podlink_links(plan, _MANY_TASKS),
    "podlink-bulk": contenders.podlink_bulk,
    "podlink-reads": lambda plan: contenders.podlink_reads(plan, _MANY_TASKS),
    "podlink-blocking": contenders.podlink_blocking,
    "podlink-alone": contenders.podlink_alone,
    "podlink-cached": contenders.podlink_cached,
    "staleness": staleness.staleness,
    "blocked": server.blocked,
    "memory": server.memory,
}


class Answer(msgspec.Struct):
    """What one round gave.

    Attributes:
        figures: by name.
        problem: why there are none.
    """

    figures: dict[str, float] = {}
    problem: str = ""


def answer(contender: str, plan: Plan) -> Answer:
    """Measure once."""
    try:
        measured = MEASURES[contender](plan)
        figures = asyncio.run(_awaited(measured)) if inspect.isawaitable(measured) else measured
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this contender's alone
        return Answer(problem=_reason(error))
    return Answer(figures if isinstance(figures, dict) else {contender: figures})


async def _awaited(measured: Awaitable[Figures]) -> Figures:
    return await measured


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        # A task group of many tasks that failed alike.
        error = error.exceptions[0]
    return str(error) if isinstance(error, NotMeasuredError | PodLinkError) else f"{type(error).__name__}: {error}"


def main() -> None:
    """Answer until there is nobody to ask."""
    # A Ctrl-C in the terminal is for the parent, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin.buffer:
        told = answer(sys.argv[1], msgspec.json.decode(line, type=Plan))
        sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
