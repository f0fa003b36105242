"""Redis Cluster, as far as it needs no I/O: operations that span two hash slots, and answers that point elsewhere.

A uid's links live in one slot, the loads of a service in another. So a link is set or removed on the uid's slot, by the
same script that books the load elsewhere; here it says what there is to book, and a second call books it on the
service's slot. Picking a pod reserves it first, then links it if there still is no link, and gives the reservation
back where there is one. A client that dies in between leaves a load that is one off, which the recount repairs, and
never a wrong link.
"""

import dataclasses
import functools
import random
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    RedisClusterException,
    RedisError,
    TryAgainError,
)

from podlink.domain import keys
from podlink.domain.errors import NotReplicated, PodLinkError, RedisUnavailable, ScriptError
from podlink.store import operations
from podlink.store.batching.outcomes import logger, outcome, unavailable
from podlink.store.operations import Operation, Shape, replies, scripts
from podlink.store.operations.base import command

Steps: TypeAlias = Generator[list[Operation[Any]], list[Any], Any]
"""Yields operations of one slot each, which have no order among them, and is sent their results, PodLinkErrors among
them; returns a result or a PodLinkError."""

UNREACHABLE: Final = (RedisError, RedisClusterException, OSError)
"""What redis-py raises where a cluster's map cannot be had; the second is no RedisError."""

_ELSEWHERE: Final = (MovedError, AskError, TryAgainError, ClusterDownError)
"""How a server says that an operation, which it has not run, is to be sent elsewhere or again."""

ASKING: Final = command("asking", "ASKING", lambda _: True)
"""Sent ahead of an operation to a server that is about to take its slot over."""

FRESH_SECONDS: Final = 0.25
"""A map of a cluster that is so new is not asked for again."""

_BOOKED: Final = frozenset(
    {
        scripts.SET_LINK,
        scripts.TRY_SET_LINK,
        scripts.SET_LINK_IF_ABSENT,
        scripts.REMOVE_LINK,
        scripts.REMOVE_LINK_WITH_ID,
    }
)
_SILENT_SECONDS: Final = 1.0
_FIRST_PAUSE_SECONDS: Final = 0.01
_LONGEST_PAUSE_SECONDS: Final = 0.2


class Round(NamedTuple):
    """What to send next, and what to do before.

    Attributes:
        asked: operations of one slot each, and the server that is about to take that slot over, where one is.
        moved: slots that have moved.
        pause_seconds: wait so long first, and ask for the cluster's map meanwhile; 0: don't.
        ordered: a server has to run them in this order.
    """

    asked: Sequence[tuple[Operation[Any], AskError | None]]
    moved: Sequence[MovedError] = ()
    pause_seconds: float = 0.0
    ordered: bool = False


_Whose: TypeAlias = "tuple[str | None, str | None]"
"""A namespace, and a uid or a service in it."""

Rounds: TypeAlias = Generator[Round, list[Any], list[Any]]
"""Yields what to send, and is sent a result or PodLinkError for each; returns the same for what was to be run."""


def rounds(many: Sequence[Operation[Any]], timeout_seconds: float, *, ordered: bool = False) -> Rounds:
    """Run operations, each through the steps that it needs, wherever its slots are by now.

    Args:
        many: operations of the executor.
        timeout_seconds: how long a step is sent elsewhere, or again, while a slot moves.
        ordered: whether those of one uid, or of one service, keep their order.
    """
    if not ordered:
        return (yield from _side_by_side(many, timeout_seconds, ordered=False))
    results: list[Any] = []
    lost: dict[_Whose, RedisUnavailable] = {}
    for wave in _waves(many):
        answers = iter((yield from _side_by_side([o for o in wave if _whose(o) not in lost], timeout_seconds)))
        for operation in wave:
            whose = _whose(operation)
            if whose in lost:
                # Behind one whose fate is unknown, which may still be applied.
                result = unavailable(operation.name, lost[whose].__cause__ or lost[whose], maybe_applied=False)
            else:
                result = next(answers)
                if operation.uid and isinstance(result, RedisUnavailable) and not isinstance(result, NotReplicated):
                    lost[whose] = result
            results.append(result)
    return results


def _waves(many: Sequence[Operation[Any]]) -> Iterator[Sequence[Operation[Any]]]:
    """Split operations where one has to wait until those before it are through with all of their steps.

    Sent together, two of one uid would not keep their order: the first may take more steps, or be sent again, because
    the server does not know its script or one of its keys has moved. What is asked of a service comes behind the links
    whose loads are to be booked there.
    """
    wave: list[Operation[Any]] = []
    uids: set[_Whose] = set()
    linked: set[_Whose] = set()
    for operation in many:
        service = operation.shape.namespace, operation.shape.service
        if _whose(operation) in uids if operation.uid else service in linked:
            yield wave
            wave = []
            uids.clear()
            linked.clear()
        wave.append(operation)
        if operation.uid:
            uids.add(_whose(operation))
            linked.add(service)
    if wave:
        yield wave


def _whose(operation: Operation[Any]) -> _Whose:
    return operation.shape.namespace, operation.uid or None


def _side_by_side(many: Sequence[Operation[Any]], timeout_seconds: float, *, ordered: bool = True) -> Rounds:
    results: list[Any] = [None] * len(many)
    going: dict[int, tuple[Steps, list[Operation[Any]]]] = {}

    def advance(slot: int, steps: Steps, answers: list[Any] | None) -> None:
        try:
            going[slot] = steps, (next(steps) if answers is None else steps.send(answers))
        except StopIteration as end:
            results[slot] = end.value
            going.pop(slot, None)

    for slot, operation in enumerate(many):
        advance(slot, _steps(operation), None)
    while going:
        wanted = list(going.items())
        asked = [operation for _, (_, step) in wanted for operation in step]
        answers = yield from _followed(asked, timeout_seconds, ordered=ordered)
        for slot, (steps, step) in wanted:
            own, answers = answers[: len(step)], answers[len(step) :]
            advance(slot, steps, own)
    return results


def _followed(many: Sequence[Operation[Any]], timeout_seconds: float, *, ordered: bool) -> Rounds:
    """Send each operation again where a server said that it belongs elsewhere, which means that it has not run."""
    deadline = time.monotonic() + timeout_seconds
    results: list[Any] = [None] * len(many)
    left: list[tuple[int, AskError | None]] = [(slot, None) for slot in range(len(many))]
    moved: list[MovedError] = []
    pauses = _pauses()
    pause = 0.0
    while left:
        answers = yield Round([(many[slot], ask) for slot, ask in left], moved, pause, ordered)
        asked, left, moved, pause = left, [], [], 0.0
        for (slot, _), answer in zip(asked, answers, strict=True):
            results[slot] = answer
            if isinstance(answer, PodLinkError) and _half_here(many[slot], answer):
                cause = TryAgainError("the keys it needs are on their way to another server of the cluster")
                results[slot] = unavailable(many[slot].name, cause, maybe_applied=False)
                pause = pause or next(pauses)
                left.append((slot, None))
                continue
            match answer.__cause__ if isinstance(answer, PodLinkError) else None:
                case MovedError() as elsewhere:
                    moved.append(elsewhere)
                    left.append((slot, None))
                case AskError() as elsewhere:
                    left.append((slot, elsewhere))
                case TryAgainError() | ClusterDownError():
                    pause = pause or next(pauses)
                    left.append((slot, None))
                case _:
                    pass
        if time.monotonic() + pause > deadline:
            break
    return results


def is_elsewhere(operation: Operation[Any], error: PodLinkError) -> bool:
    """Whether a server has not run an operation because it is to be sent elsewhere, or again."""
    return isinstance(error.__cause__, _ELSEWHERE) or _half_here(operation, error)


def _half_here(operation: Operation[Any], error: PodLinkError) -> bool:
    """Whether a script that finds keys by itself found a slot on its way, some of whose keys are here, and some there.

    It is not to follow a key that it was given: where it misses the others, it would take them for gone.
    """
    if operation.script is None or not operation.script.finds_keys:
        return False
    return isinstance(error.__cause__, AskError) or "non local key" in str(error.__cause__)


def _pauses() -> Iterator[float]:
    """Seconds to wait before each new try while a slot moves: longer and longer, and never all clients at once."""
    longest = _FIRST_PAUSE_SECONDS
    while True:
        yield longest * (1 - random.random() / 2)  # noqa: S311 - it guards nothing
        longest = min(longest * 2, _LONGEST_PAUSE_SECONDS)


def takes_one_step(operation: Operation[Any]) -> bool:
    """Whether an operation has all of its keys in one slot, and nothing to do in another."""
    script = operation.script
    return operation.target != "MGET" and script is not scripts.COMPUTE_LINK_IF_ABSENT and script not in _BOOKED


def _steps(operation: Operation[Any]) -> Steps:
    if operation.target == "MGET":
        return _read_each(operation)
    if operation.script is scripts.COMPUTE_LINK_IF_ABSENT:
        return _compute(operation)
    return _book(operation) if operation.script in _BOOKED else _alone(operation)


def _alone(operation: Operation[Any]) -> Steps:
    if not operation.target:
        return outcome(operation, ())
    (result,) = yield [operation]
    return result


def _read_each(operation: Operation[Any]) -> Steps:
    answers = yield [command(operation.name, "GET", replies.as_it_is, keys=(key,)) for key in operation.keys]
    error = next((answer for answer in answers if isinstance(answer, PodLinkError)), None)
    return error or outcome(operation, answers)


def _book(operation: Operation[Any]) -> Steps:
    (answer,) = yield [Operation(_booking_shape(operation.shape), operation.uid, operation.own)]
    if isinstance(answer, PodLinkError):
        return answer
    result, given, temporary, taken, ends = answer
    if (given or taken) and not (given == taken and not temporary and not ends):
        yield from _settle(operation, given=given, temporary=temporary, taken=taken, ends=ends)
    return result


def _compute(operation: Operation[Any]) -> Steps:
    shape = operation.shape
    service = (str(shape.namespace), str(shape.service))
    (linked,) = yield [operations.get_linked_pod(service[0], operation.uid, service[1])]
    if isinstance(linked, ScriptError):
        # It reads what the script reads first elsewhere, and its error is told as the script's.
        return outcome(operation, linked.__cause__)
    if linked is not None:
        return linked
    (reserved,) = yield [operations.reserve_service_pod(*service)]
    if reserved is None or isinstance(reserved, PodLinkError):
        return reserved
    (persist,) = shape.after
    attempt = operations.set_linked_pod_if_absent(
        service[0], operation.uid, service[1], reserved, persist_seconds=int(persist)
    )
    (answer,) = yield [Operation(_booking_shape(attempt.shape), attempt.uid, attempt.own)]
    if isinstance(answer, PodLinkError):
        if not (isinstance(answer, RedisUnavailable) and answer.maybe_applied):
            yield from _settle(operation, given=str(reserved), temporary=False, taken="", ends="")
        return answer
    pod, _, _, taken, ends = answer
    if not taken:
        # Somebody else linked the uid meanwhile.
        yield from _settle(operation, given=str(reserved), temporary=False, taken="", ends="")
    elif ends:
        # The reservation becomes the unit of a temporary link, which expiry has to know.
        yield from _settle(operation, given=taken, temporary=False, taken=taken, ends=ends)
    return pod


def _settle(operation: Operation[Any], *, given: str, temporary: bool, taken: str, ends: str) -> Steps:
    shape = operation.shape
    namespace, service = str(shape.namespace), str(shape.service)
    (booked,) = yield [
        operations.book_load(
            namespace,
            service,
            keys.link_key(namespace, operation.uid, service),
            given=given,
            temporary=temporary,
            taken=taken,
            ends=ends,
        )
    ]
    if isinstance(booked, PodLinkError) and not isinstance(booked, NotReplicated):
        # The link itself is as it was asked for, and that is what the caller is told.
        _unbooked.tell(namespace, service, booked)
    return None


class _Unbooked:
    """Tells of loads that could not be booked, at most once a second: in an outage there may be thousands."""

    def __init__(self) -> None:
        self._silent_until = 0.0
        self._untold = 0

    def tell(self, namespace: str, service: str, error: PodLinkError) -> None:
        """One more."""
        now = time.monotonic()
        if now < self._silent_until:
            self._untold += 1
            return
        logger.warning(
            "the load of service %s is one off until the next recount (so are %d more that were not told of): %s",
            service,
            self._untold,
            error,
            extra={"namespace": namespace, "service": service},
        )
        self._silent_until, self._untold = now + _SILENT_SECONDS, 0


_unbooked: Final = _Unbooked()


@functools.lru_cache(maxsize=4096)
def _booking_shape(shape: Shape[Any]) -> Shape[tuple[Any, str, bool, str, str]]:
    """The same call on the uid's keys alone, which says what there is to book."""
    after = (*shape.after, "1")
    return dataclasses.replace(shape, keys=(), after=after, parse=functools.partial(_booking, shape.parse))


def _booking(parse: Callable[[Any], Any], reply: Any) -> tuple[Any, str, bool, str, str]:
    result, given, temporary, taken, ends = reply
    return parse(result), replies.text(given), replies.flag(temporary), replies.text(taken), replies.text(ends)
