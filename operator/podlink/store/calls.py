"""What a call to Redis goes through, without the I/O: both executors drive this and add only sockets.

Retrying is where such a library goes wrong, so the one place that sends anything twice to a server is here: a script
the server does not know (NOSCRIPT) has not run, so loading it and sending it again is safe.

In a pipeline that alone would break the order: a read behind a script that has to be sent again would come before it.
So a pipeline carries the text of each script the first time it needs it, and its digest from then on; the server knows
the script by then. Of some hundred operations, the text is a tenth of what is sent.

Calls of many callers share a connection, on which some are under way before others are answered. There too a call that
had to be sent again could overtake what its caller, who stopped waiting for it, has asked for since. So a connection
carries the text of each script once.
"""

import functools
import inspect
import math
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, cast, get_args

import hiredis
from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from podlink.domain.errors import InvalidArgument, PodLinkError
from podlink.store.merging import merge
from podlink.store.operations import Operation
from podlink.store.outcomes import Reply, not_replicated, outcome

M = TypeVar("M", bound=Callable[..., Any])
T = TypeVar("T")

DEFAULT_TIMEOUT_SECONDS: Final = 5.0

Durability: TypeAlias = Literal["primary", "replicated"]
"""Who must have a write before the call returns."""

Request: TypeAlias = tuple[str | int, ...]

Conversation: TypeAlias = Generator[list[Request], list[Reply], T]
"""Yields requests to send down one connection in one go, and is sent one reply for each of them."""


class Manner(NamedTuple):
    """How operations are sent.

    Attributes:
        ordered: they keep their order, even where the server does not know a script yet.
        merged: they have none, and travel in as few requests as may be.
        wait: the request, behind what they wrote, that waits for replicas to have it; empty: don't wait.
    """

    ordered: bool = False
    merged: bool = False
    wait: Request = ()


_IN_ORDER: Final = Manner(ordered=True)


def conversation(
    operations: Sequence[Operation[T]], manner: Manner = _IN_ORDER, known: set[str] | None = None
) -> Conversation[list[T | PodLinkError]]:
    """Run operations in one pipeline: each has its own result, or its own error, in its own place.

    Args:
        operations: what to run.
        manner: how they are sent.
        known: names of the scripts that the server knows, as far as it was told on the connection that is used; those
            that it is told now are added. None: it may know them all.
    """
    if len(operations) == 1 and operations[0].target and not manner.wait:
        # A call alone, as most are: what follows below comes to the same, and costs several times as much.
        answers = yield _requests(operations, known)
        if isinstance(answers[0], NoScriptError):
            yield from _load_and_repeat(operations, [0], answers, [])
        return [outcome(operations[0], answers[0])]
    parcels = list(merge(operations)) if manner.merged else [(operation, 1) for operation in operations]
    answers, confirmation_failed = yield from _talk([parcel for parcel, _ in parcels], manner, known)
    replies: list[Reply] = []
    refused: list[int] = []
    for (_, count), answer in zip(parcels, answers, strict=True):
        if count > 1 and isinstance(answer, NoPermissionError):
            # The keys of one call may be out of bounds; those of the others need not be. Nothing has run.
            refused += range(len(replies), len(replies) + count)
        replies += _of_each(answer, count)
    if refused:
        alone, failed = yield from _talk([operations[slot] for slot in refused], manner, known)
        confirmation_failed = confirmation_failed or failed
        for slot, answer in zip(refused, alone, strict=True):
            replies[slot] = answer
    results = [outcome(operation, reply) for operation, reply in zip(operations, replies, strict=True)]
    if confirmation_failed is None:
        return results
    return [
        not_replicated(operation, int(manner.wait[1]), confirmation_failed)
        if operation.shape.writes and not isinstance(result, PodLinkError)
        else result
        for operation, result in zip(operations, results, strict=True)
    ]


def _of_each(answer: Reply, count: int) -> list[Reply]:
    """The reply to each of the calls that travelled as one."""
    if count == 1 or not isinstance(answer, list):
        return [answer] * count  # what befell the whole parcel befell each in it
    if len(answer) != count:
        return [ResponseError(f"{len(answer)} replies to {count} calls")] * count
    return answer


def _talk(
    operations: Sequence[Operation[Any]], manner: Manner, known: set[str] | None
) -> Conversation[tuple[list[Reply], Exception | None]]:
    """Send; where the server did not know a script, load it and send again. Tell what kept replicas from confirming."""
    replies: list[Reply] = [()] * len(operations)
    confirmation_failed: Exception | None = None
    asked = [slot for slot, operation in enumerate(operations) if operation.target]
    # On the connection of the writes, it answers how many replicas have all that was written there so far.
    wait = [manner.wait] if manner.wait and any(operation.shape.writes for operation in operations) else []
    if asked:
        # In order, no script may turn out to be unknown half way: the server is told each anew.
        told = set[str]() if manner.ordered and len(asked) > 1 else known
        answers = yield _requests([operations[slot] for slot in asked], told) + wait
        for slot, answer in zip(asked, answers, strict=False):
            replies[slot] = answer
        unknown = [slot for slot in asked if isinstance(replies[slot], NoScriptError)]
        if unknown:
            answers = yield from _load_and_repeat(operations, unknown, replies, wait)
        if wait:
            confirmation_failed = _too_few(answers[-1], int(manner.wait[1]))
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
) -> Conversation[list[Reply]]:
    texts = {script.text: None for slot in unknown if (script := operations[slot].script)}
    # Loading travels ahead of the scripts down the same connection, so it also reaches the same server.
    again = [operations[slot].request() for slot in unknown]
    answers = yield [("SCRIPT", "LOAD", text) for text in texts] + again + wait
    loaded, repeated = answers[: len(texts)], answers[len(texts) :]
    refused = next((answer for answer in loaded if isinstance(answer, ResponseError)), None)
    for slot, answer in zip(unknown, repeated, strict=False):
        # The server's reason for not loading a script says more than the NOSCRIPT that follows from it.
        replies[slot] = refused if refused and isinstance(answer, NoScriptError) else answer
    forgotten = [slot for slot in unknown if isinstance(replies[slot], NoScriptError)]
    if forgotten:
        # Somebody flushed the scripts between loading and running them. The text in the call itself cannot be lost.
        answers = yield [operations[slot].request(with_text=True) for slot in forgotten] + wait
        for slot, answer in zip(forgotten, answers, strict=False):
            replies[slot] = answer
    return answers


# The stub says tuple[T] where a tuple of any length is meant.
_pack: Final = cast("Callable[[Request], bytes]", hiredis.pack_command)


def pack(requests: Iterable[Request]) -> bytes:
    """Requests as they go over the wire."""
    return b"".join(map(_pack, requests))


def described_by(build: Callable[..., Any], method: M) -> M:
    """Give an executor's method the name, the docstring and the signature of the builder whose operation it runs."""
    functools.update_wrapper(method, build)
    signature = inspect.signature(build)
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    (result,) = get_args(signature.return_annotation)
    described = signature.replace(parameters=[this, *signature.parameters.values()], return_annotation=result)
    vars(method)["__signature__"] = described
    return method


def check_timeout(seconds: float) -> None:
    """Refuse a timeout under which no call could succeed.

    Raises:
        InvalidArgument: it is no number above 0, or infinite.
    """
    if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise InvalidArgument(
            f"timeout_seconds must be a finite number above 0, got {seconds!r}", argument="timeout_seconds"
        )


def confirmation(durability: str, replicas: int, timeout_seconds: float) -> Request:
    """The request that confirms writes; empty where nobody needs to.

    Replicas may take a quarter of what a call may take: so the callers are told of it in time, and so are those who
    came while others waited.

    Raises:
        InvalidArgument: the durability is neither "primary" nor "replicated", or replicas is no int above 0.
    """
    if durability not in ("primary", "replicated"):
        raise InvalidArgument(
            f'durability must be "primary" or "replicated" (a replica confirms each write), got {durability!r}',
            argument="durability",
        )
    if type(replicas) is not int or replicas < 1:
        raise InvalidArgument(f"replicas must be an int above 0, got {replicas!r}", argument="replicas")
    return ("WAIT", replicas, max(1, int(timeout_seconds * 250))) if durability == "replicated" else ()


def checked_size(entries: int) -> int:
    """Refuse a cache that could hold nothing.

    Raises:
        InvalidArgument: it is no int above 0.
    """
    if type(entries) is not int or entries < 1:
        raise InvalidArgument(f"cache_entries must be an int above 0, got {entries!r}", argument="cache_entries")
    return entries
