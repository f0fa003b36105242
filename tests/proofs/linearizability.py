"""Whether what concurrent clients were told can be explained by one call after the other.

A history is linearizable if its calls can be put in one order that a single client could have seen, in which no call
comes before another one that had ended when it began. The search is that of Wing and Gong ("Testing and verifying
concurrent objects", 1993), with the memory of Lowe ("Testing for linearizability", 2017): which calls are done, and
what the object holds then, is all that matters of the way there, so no such pair is gone into twice.

The object is described by a function: what may come of an operation in a state. It may be several things, where the
object is free to choose.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

State: TypeAlias = Hashable

Outcomes: TypeAlias = Callable[[Any, Any], Iterable[tuple[Any, Any]]]
"""Of a state and an operation: each (result, next state) that may come of it."""

LIMIT: Final = 2_000_000
"""Pairs of calls done and state that are looked at before the search gives up: some seconds, and some 100 MB."""


class Call(NamedTuple):
    """One call of one client, on one object.

    Attributes:
        client: who called; its calls do not overlap, except those of one pipeline.
        operation: what was asked.
        result: what came of it; of no meaning in a call without an answer.
        began: nanoseconds of a clock that all clients share, before anything was sent.
        ended: when the answer was there; None: there was none, so that it may have happened at any time since it
            began, or never, or may still happen.
        place: where in its pipeline. Of one client's calls that began together, those that have a place happened in
            the order of their places.
    """

    client: str
    operation: Any
    result: Any
    began: int
    ended: int | None
    place: int | None = None


class Verdict(enum.Enum):
    """What is known of a history."""

    LINEARIZABLE = "linearizable"
    IMPOSSIBLE = "not linearizable"
    UNDECIDED = "not decided within the limit"


class Evidence(NamedTuple):
    """A part of a history that is impossible by itself.

    Attributes:
        calls: in the order in which they began.
        from_any_state: whatever the object held before them; else it held what it did at the beginning.
    """

    calls: Sequence[Call]
    from_any_state: bool


def check(calls: Iterable[Call], outcomes: Outcomes, initial_states: Iterable[State], *, limit: int = LIMIT) -> Verdict:
    """Look for an order of the calls that explains all results.

    Args:
        calls: on one object.
        outcomes: what may come of an operation.
        initial_states: the object was in one of these.
        limit: pairs of calls done and state that are looked at.
    """
    ordered = sorted(calls, key=_began)
    earlier = _earlier_in_pipeline(ordered)
    answered = sum(1 << number for number, call in enumerate(ordered) if call.ended is not None)
    reached = {(0, state) for state in initial_states}
    left = list(reached)
    while left:
        done, state = left.pop()
        if done & answered == answered:
            return Verdict.LINEARIZABLE
        if len(reached) > limit:
            return Verdict.UNDECIDED
        # The last one is gone into first, and the call that began first is the likeliest to come first.
        for number in reversed(_possible(ordered, earlier, done)):
            call = ordered[number]
            for result, following in outcomes(state, call.operation):
                pair = done | 1 << number, following
                if (call.ended is None or result == call.result) and pair not in reached:
                    reached.add(pair)
                    left.append(pair)
    return Verdict.IMPOSSIBLE


def smallest(calls: Iterable[Call], outcomes: Outcomes, initial_state: State, states: Collection[State]) -> Evidence:
    """Reduce an impossible history to what makes it so, by steps that leave possible ones possible.

    Args:
        calls: a history that is not linearizable.
        outcomes: what may come of an operation.
        initial_state: what the object held at first.
        states: all that it could ever hold.
    """

    def impossible(some: Sequence[Call], initial_states: Iterable[State] = (initial_state,)) -> bool:
        return check(some, outcomes, initial_states) is Verdict.IMPOSSIBLE

    kept = _until_first_contradiction(sorted(calls, key=_began), impossible)
    for call in list(kept):
        without = [other for other in kept if other is not call]
        if _changes_nothing(call, outcomes, states) and impossible(without):
            kept = without
    for cut in sorted({call.began for call in kept}, reverse=True):
        if any(call.began < cut <= (call.ended or 0) for call in kept):
            continue
        # Nobody was waiting for an answer then. What never had one may have happened later.
        tail = [call for call in kept if call.began >= cut or call.ended is None]
        if len(tail) < len(kept) and impossible(tail, states):
            return Evidence(tail, from_any_state=True)
    return Evidence(kept, from_any_state=False)


def _began(call: Call) -> tuple[int, int]:
    return call.began, call.place or 0


def _earlier_in_pipeline(ordered: Sequence[Call]) -> list[int]:
    """For each call, as bits, the answered calls that its pipeline had before it."""
    earlier = [0] * len(ordered)
    pipelines: dict[tuple[str, int], int] = {}
    for number, call in enumerate(ordered):
        if call.place is not None:
            pipeline = call.client, call.began
            earlier[number] = pipelines.get(pipeline, 0)
            if call.ended is not None:
                pipelines[pipeline] = earlier[number] | 1 << number
    return earlier


def _possible(ordered: Sequence[Call], earlier: Sequence[int], done: int) -> list[int]:
    """The calls that may come next: none that began after another one ended which is not done."""
    found: list[int] = []
    first_end = float("inf")
    for number in range(_first_not_done(done), len(ordered)):
        call = ordered[number]
        if call.began > first_end:
            break
        if done >> number & 1:
            continue
        if earlier[number] & ~done == 0:
            found.append(number)
        if call.ended is not None:
            first_end = min(first_end, call.ended)
    return found


def _first_not_done(done: int) -> int:
    return (~done & (done + 1)).bit_length() - 1


def _until_first_contradiction(ordered: list[Call], impossible: Callable[[Sequence[Call]], bool]) -> list[Call]:
    """The history as it was when the first answer came that cannot be explained; later ones were still awaited."""
    ends = sorted(call.ended for call in ordered if call.ended is not None)
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        if impossible(_until(ordered, ends[middle])):
            high = middle
        else:
            low = middle + 1
    return _until(ordered, ends[low])


def _until(ordered: Iterable[Call], moment: int) -> list[Call]:
    return [
        call if call.ended is None or call.ended <= moment else call._replace(ended=None, result=None)
        for call in ordered
        if call.began <= moment
    ]


def _changes_nothing(call: Call, outcomes: Outcomes, states: Iterable[State]) -> bool:
    """Whether the call, having told what it told, left the object as it was, whatever it held."""
    return all(
        following == state
        for state in states
        for result, following in outcomes(state, call.operation)
        if call.ended is None or result == call.result
    )
