"""A process that measures one contender, `python -m podlink.bench.worker NAME`: a line of JSON in, one out, each round.

It stays for all rounds, so that Python starts once, and is connected only while it measures.
"""

import asyncio
import inspect
import signal
import sys
from typing import Any

import msgspec
import redis

from podlink.bench.contenders import MEASURES
from podlink.bench.plan import Plan
from podlink.bench.sockets import UnexpectedReplyError
from podlink.domain.errors import PodLinkError


class Answer(msgspec.Struct):
    """What one round gave.

    Attributes:
        value: measured, in the unit of the contender.
        problem: why there is none.
    """

    value: float = 0
    problem: str = ""


def answer(name: str, plan: Plan) -> Answer:
    """Measure once."""
    try:
        measured: Any = MEASURES[name](plan)
        return Answer(value=asyncio.run(measured) if inspect.iscoroutine(measured) else measured)
    except* (PodLinkError, redis.RedisError, UnexpectedReplyError, OSError) as failed:
        first: BaseException = failed
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        problem = str(first) or type(first).__name__
    return Answer(problem=problem)


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
