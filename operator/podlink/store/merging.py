"""Puts the calls of many callers together: up to 64 script calls travel as one call of the batch script.

The server spends less on one script call of many operations than on as many calls, and so does the client. Callers see
nothing of it: each has its own reply, or its own error.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Final

from podlink.store import scripts
from podlink.store.operations import Operation
from podlink.store.scripts import Script

BATCH_SIZE: Final = 64
"""Operations of one script call. The gain of more is small, and the server serves nobody else meanwhile."""

_NUMBERS: Final[dict[Script | None, int]] = {script: number for number, script in enumerate(scripts.ALL, start=1)}


def merge(operations: Sequence[Operation[Any]]) -> Iterator[tuple[Operation[Any], int]]:
    """Turn operations into fewer, in the same order.

    Yields:
        `(operation, n)`: one to send, and for how many of the given ones it stands. With n above 1 its reply is the
        list of theirs.
    """
    start, end = 0, len(operations)
    while start < end:
        stop = start
        while stop < end and stop - start < BATCH_SIZE and operations[stop].script:
            stop += 1
        if stop - start > 1:
            yield _batch(operations[start:stop]), stop - start
            start = stop
        else:
            yield operations[start], 1
            start += 1


def _batch(operations: Sequence[Operation[Any]]) -> Operation[Any]:
    keys: list[str] = []
    args: list[str | int] = []
    for (script, key_count, arg_count), run in groupby(operations, _form):
        calls = list(run)
        args += (_NUMBERS[script], key_count, arg_count, len(calls))
        for call in calls:
            keys += call.keys
            args += call.args
    return Operation(name="batch", keys=tuple(keys), parse=_as_it_is, script=scripts.BATCH, args=tuple(args))


def _form(operation: Operation[Any]) -> tuple[Script | None, int, int]:
    return operation.script, len(operation.keys), len(operation.args)


def _as_it_is(reply: Any) -> Any:
    return reply
