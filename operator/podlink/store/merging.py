"""Puts the calls of many callers together, so that up to 40 of them travel, and run, as one.

The server spends less on one script call of many operations than on as many calls, and so does the client. Callers see
nothing of it: each has its own reply, or its own error.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, TypeAlias

from podlink.store import scripts
from podlink.store.operations import Operation, Shape, replies

BATCH_SIZE: Final = 40
"""Permanent links of one script call, or as much work of other kinds. The gain of more is small, and the server serves
nobody else meanwhile."""

Run: TypeAlias = tuple[Shape[Any], list[Operation[Any]]]
"""Operations of one shape that follow each other."""

_BY_SHAPE: Final = attrgetter("shape")


def merge(operations: Sequence[Operation[Any]]) -> Iterator[tuple[Operation[Any], int]]:
    """Turn operations into fewer, in the same order.

    Yields:
        `(operation, n)`: one to send, and for how many of the given ones it stands. With n above 1 its reply is the
        list of theirs.
    """
    runs = [(shape, list(calls)) for shape, calls in groupby(operations, _BY_SHAPE)]
    pack = _read if all(shape.command == "GET" for shape, _ in runs) else _batch
    load: list[Run] = []
    room = BATCH_SIZE
    for shape, run in runs:
        calls = run
        if shape.target not in scripts.NUMBERS:
            if load:
                yield _sealed(load, pack)
                load, room = [], BATCH_SIZE
            yield from ((call, 1) for call in calls)
            continue
        while calls:
            fit = room // shape.weight
            if fit:
                load.append((shape, calls[:fit]))
                room -= len(calls[:fit]) * shape.weight
                calls = calls[fit:]
            else:
                yield _sealed(load, pack)
                load, room = [], BATCH_SIZE
    if load:
        yield _sealed(load, pack)


def _sealed(runs: Sequence[Run], pack: Callable[[Sequence[Run]], Operation[Any]]) -> tuple[Operation[Any], int]:
    count = sum(len(calls) for _, calls in runs)
    return (pack(runs), count) if count > 1 else (runs[0][1][0], 1)


def _read(runs: Sequence[Run]) -> Operation[Any]:
    # A value that is no string counts as none here, where GET answers an error: the next write to it says so.
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
