"""Merges the calls of many callers, so that up to 40 of them are sent and run as one script call.

One script call with many operations costs the server and the client less than many calls. Callers do not notice it:
each gets its own reply, or its own error.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, TypeAlias

from podlink.store.operations import Operation, Shape, replies, scripts

BATCH_SIZE: Final = 40
"""Permanent links in one script call, or as much work of other kinds. More would gain little, and the server serves
nobody else in that time."""

Run: TypeAlias = tuple[Shape[Any], list[Operation[Any]]]
"""Consecutive operations of one shape."""

_BY_SHAPE: Final = attrgetter("shape")


def merge(operations: Sequence[Operation[Any]]) -> Iterator[tuple[Operation[Any], int]]:
    """Merge operations into fewer, in the same order.

    Yields:
        `(operation, n)`: an operation to send, and the number of given operations that it contains. With n above 1, its
        reply is the list of their replies.
    """
    runs = [(shape, list(calls)) for shape, calls in groupby(operations, _BY_SHAPE)]
    join = _read if all(shape.command == "GET" for shape, _ in runs) else _batch
    batch: list[Run] = []
    room = BATCH_SIZE
    for shape, run in runs:
        calls = run
        if shape.target not in scripts.NUMBERS:
            if batch:
                yield _joined(batch, join)
                batch, room = [], BATCH_SIZE
            yield from ((call, 1) for call in calls)
            continue
        while calls:
            fit = room // shape.weight
            if fit:
                batch.append((shape, calls[:fit]))
                room -= len(calls[:fit]) * shape.weight
                calls = calls[fit:]
            else:
                yield _joined(batch, join)
                batch, room = [], BATCH_SIZE
    if batch:
        yield _joined(batch, join)


def _joined(runs: Sequence[Run], join: Callable[[Sequence[Run]], Operation[Any]]) -> tuple[Operation[Any], int]:
    count = sum(len(calls) for _, calls in runs)
    return (join(runs), count) if count > 1 else (runs[0][1][0], 1)


def _read(runs: Sequence[Run]) -> Operation[Any]:
    # MGET treats a value of another type as no link, where GET answers an error. The next write reports the error.
    keys: list[str] = []
    for shape, calls in runs:
        if shape.tails:
            head, (tail,) = shape.head, shape.tails
            keys += [f"{head}{call.uid}{tail}" for call in calls]
        else:
            keys += shape.keys * len(calls)
    return Operation(Shape("read", replies.as_it_is, command="MGET", keys=tuple(keys)))


def _batch(runs: Sequence[Run]) -> Operation[Any]:
    keys: list[str] = []
    args: list[str | int] = []
    for shape, calls in runs:
        keys += shape.keys
        args += _header(calls[0], len(calls))
        if shape.tails:
            for call in calls:
                args.append(call.uid)
                args += call.own
        else:
            for call in calls:
                args += call.own
    return Operation(Shape("batch", replies.as_it_is, script=scripts.BATCH, keys=tuple(keys), before=tuple(args)))


def _header(call: Operation[Any], calls: int) -> list[str | int]:
    shape = call.shape
    counts = (len(part) for part in (shape.keys, shape.tails, shape.before, call.own, shape.after))
    form = " ".join((scripts.NUMBERS[shape.target], *map(str, counts)))
    return [form, calls, shape.head, *shape.tails, *shape.before, *shape.after]
