"""The requests and replies of one or more operations, without I/O. Both executors run this and only add sockets.

This is the only place that sends something to a server twice. If a server does not know a script (NOSCRIPT), the script
has not run. So it is safe to load it and to send the call again.

In a pipeline, a repeated call would break the order: a read behind it would run before it. So the first call of each
script in a pipeline sends the text of the script, and later calls send its digest. In a pipeline of a hundred
operations, the texts are a tenth of what is sent.

On a shared connection, a repeated call could overtake a later call of the same caller, if that caller stopped waiting
for the first one. So the first call of each script on a connection sends its text too.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, cast

import hiredis
from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from podlink.domain.errors import PodLinkError
from podlink.store.batching.merging import merge
from podlink.store.batching.outcomes import Reply, not_replicated, outcome
from podlink.store.operations import Operation

T = TypeVar("T")

Request: TypeAlias = tuple[str | int, ...]

Exchange: TypeAlias = Generator[list[Request], list[Reply], T]
"""Yields requests to send together on one connection. Receives one reply for each of them."""


class SendMode(NamedTuple):
    """How operations are sent.

    Attributes:
        ordered: they keep their order, even if the server does not know a script yet.
        merged: they need no order, and are merged into as few requests as possible.
        wait: the request that waits for replicas, sent behind writes. Empty: do not wait.
    """

    ordered: bool = False
    merged: bool = False
    wait: Request = ()


_IN_ORDER: Final = SendMode(ordered=True)


def exchange(
    operations: Sequence[Operation[T]], mode: SendMode = _IN_ORDER, known: set[str] | None = None
) -> Exchange[list[T | PodLinkError]]:
    """Run operations in one pipeline. Each gets its own result, or its own error, at its own index.

    Args:
        operations: what to run.
        mode: how they are sent.
        known: names of the scripts whose text was sent on this connection. Those that are sent now are added. None:
            the server may know all scripts.
    """
    if len(operations) == 1 and operations[0].target and not mode.wait:
        # Most calls are single calls. The general code below does the same, and costs several times as much.
        answers = yield _requests(operations, known)
        if isinstance(answers[0], NoScriptError):
            yield from _load_and_repeat(operations, [0], answers, [])
        return [outcome(operations[0], answers[0])]
    requests_of = list(merge(operations)) if mode.merged else [(operation, 1) for operation in operations]
    answers, confirmation_failed = yield from _send([merged for merged, _ in requests_of], mode, known)
    replies: list[Reply] = []
    refused: list[int] = []
    for (_, count), answer in zip(requests_of, answers, strict=True):
        if count > 1 and isinstance(answer, NoPermissionError):
            # The user may lack rights on the keys of only one of these calls. Nothing has run, so send each by itself.
            refused += range(len(replies), len(replies) + count)
        replies += _of_each(answer, count)
    if refused:
        alone, failed = yield from _send([operations[slot] for slot in refused], mode, known)
        confirmation_failed = confirmation_failed or failed
        for slot, answer in zip(refused, alone, strict=True):
            replies[slot] = answer
    results = [outcome(operation, reply) for operation, reply in zip(operations, replies, strict=True)]
    if confirmation_failed is None:
        return results
    return [
        not_replicated(operation, int(mode.wait[1]), confirmation_failed)
        if operation.shape.writes and not isinstance(result, PodLinkError)
        else result
        for operation, result in zip(operations, results, strict=True)
    ]


def _of_each(answer: Reply, count: int) -> list[Reply]:
    """Return the reply of each call that was merged into this one."""
    if count == 1 or not isinstance(answer, list):
        return [answer] * count  # an error of the merged call is an error of each call in it
    if len(answer) != count:
        return [ResponseError(f"{len(answer)} replies to {count} calls")] * count
    return answer


def _send(
    operations: Sequence[Operation[Any]], mode: SendMode, known: set[str] | None
) -> Exchange[tuple[list[Reply], Exception | None]]:
    """Send requests. Load scripts that the server did not know, and send those calls again.

    Returns:
        The replies, and the reason why replicas did not confirm, if they did not.
    """
    replies: list[Reply] = [()] * len(operations)
    confirmation_failed: Exception | None = None
    asked = [slot for slot, operation in enumerate(operations) if operation.target]
    # Redis answers the number of replicas that have everything that was written on this connection so far.
    wait = [mode.wait] if mode.wait and any(operation.shape.writes for operation in operations) else []
    if asked:
        # To keep the order, no script may be unknown in the middle. So send the text of each script again.
        known_here = set[str]() if mode.ordered and len(asked) > 1 else known
        answers = yield _requests([operations[slot] for slot in asked], known_here) + wait
        for slot, answer in zip(asked, answers, strict=False):
            replies[slot] = answer
        unknown = [slot for slot in asked if isinstance(replies[slot], NoScriptError)]
        if unknown:
            answers = yield from _load_and_repeat(operations, unknown, replies, wait)
        if wait:
            confirmation_failed = _too_few(answers[-1], int(mode.wait[1]))
    return replies, confirmation_failed


def _too_few(answer: Reply, wanted: int) -> Exception | None:
    if isinstance(answer, Exception):
        return answer
    return None if answer >= wanted else TimeoutError(f"{answer} of {wanted} replicas confirmed it in time")


def _requests(operations: Sequence[Operation[Any]], known: set[str] | None) -> list[Request]:
    if known is None:
        return [operation.request() for operation in operations]
    requests: list[Request] = []
    for operation in operations:
        requests.append(operation.request(with_text=operation.shape.target not in known))
        known.add(operation.shape.target)
    return requests


def _load_and_repeat(
    operations: Sequence[Operation[Any]], unknown: list[int], replies: list[Reply], wait: list[Request]
) -> Exchange[list[Reply]]:
    texts = {script.text: None for slot in unknown if (script := operations[slot].script)}
    # The scripts are loaded on the same connection just before the calls, so the same server gets them.
    again = [operations[slot].request() for slot in unknown]
    answers = yield [("SCRIPT", "LOAD", text) for text in texts] + again + wait
    loaded, repeated = answers[: len(texts)], answers[len(texts) :]
    refused = next((answer for answer in loaded if isinstance(answer, ResponseError)), None)
    for slot, answer in zip(unknown, repeated, strict=False):
        # If the server refused to load a script, its reason says more than the NOSCRIPT that follows.
        replies[slot] = refused if refused and isinstance(answer, NoScriptError) else answer
    forgotten = [slot for slot in unknown if isinstance(replies[slot], NoScriptError)]
    if forgotten:
        # Somebody flushed the scripts between loading and running them. Send the text with the call itself.
        answers = yield [operations[slot].request(with_text=True) for slot in forgotten] + wait
        for slot, answer in zip(forgotten, answers, strict=False):
            replies[slot] = answer
    return answers


# The stub says tuple[T], but it accepts a tuple of any length.
_pack: Final = cast("Callable[[Request], bytes]", hiredis.pack_command)


def pack(requests: Iterable[Request]) -> bytes:
    """Encode requests in the Redis protocol."""
    return b"".join(map(_pack, requests))
