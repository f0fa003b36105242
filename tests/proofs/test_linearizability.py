"""The check itself: it explains what can be explained, and refuses what cannot."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from proofs.linearizability import Call, Verdict, check, smallest
from proofs.register import Asked, Link, all_states, outcomes_with

OUTCOMES = outcomes_with(frozenset({1, 2}))
PERMANENT = -1


def asked(words: str) -> Asked:
    """From `set 1`, `try 2 expected 1`, `absent 1`, `compute`, `get`, `remove`, `remove-id 1`, `listed`, `ttl`."""
    kinds: dict[str, Any] = {
        "set": "set_linked_pod",
        "try": "try_set_linked_pod",
        "absent": "set_linked_pod_if_absent",
        "compute": "compute_linked_pod_if_absent",
        "get": "get_linked_pod",
        "listed": "get_linked_services",
        "ttl": "link_ttl",
        "remove": "remove_linked_pod",
        "remove-id": "remove_linked_pod_with_id",
    }
    verb, *numbers = (word for word in words.split() if word != "expected")
    pod, expected = ([int(number) for number in numbers] + [None, None])[:2]
    writes = verb in {"set", "try", "absent", "compute"}
    return Asked(kinds[verb], pod, PERMANENT if writes else None, expected)


def history(drawing: str) -> list[Call]:
    """Calls drawn as lines: from `[` to `]` it was under way, to `>` means that no answer came; then what, and result.

    ``[---]     set 1 = None``
    """
    calls = []
    for number, line in enumerate(filter(str.strip, drawing.splitlines())):
        end = max(line.find("]"), line.find(">"))
        what, _, result = line[end + 1 :].partition("=")
        answered = line[end] == "]"
        value = eval(result, {}) if answered else None  # noqa: S307 - of the literals below
        calls.append(Call(f"c{number}", asked(what), value, line.index("["), end if answered else None))
    return calls


def verdict(drawing: str) -> Verdict:
    return check(history(drawing), OUTCOMES, [None])


POSSIBLE = {
    "one after the other": """
        [-]              set 1 = None
            [-]          get = 1
                [-]      remove = True
                    [-]  get = None
    """,
    "a read beside a write sees either": """
        [-------]        set 1 = None
         [-]             get = None
             [-]         get = 1
    """,
    "overlapping writes in the order that explains both": """
        [-------]        set 1 = 2
        [-------]        set 2 = None
                  [-]    get = 1
    """,
    "one of two wins": """
        [-------]        try 1 = (False, 2)
        [-------]        try 2 = (True, 2)
                  [-]    get = 2
    """,
    "a link that is expected makes way": """
        [-]              set 1 = None
            [-]          try 2 expected 1 = (True, 2)
                [-]      get = 2
    """,
    "without an answer, and it happened later": """
        [->              set 1
            [-]          get = None
                [-]      get = 1
    """,
    "without an answer, and it never happened": """
        [->              set 1
            [-]          set 2 = None
                [-]      get = 2
                    [-]  get = 2
    """,
    "without an answer, between two others": """
        [->              remove
            [-]          set 1 = None
                [-]      set 2 = None
    """,
    "a compute picks any pod that is ready": """
        [----]           compute = 2
        [----]           compute = 2
               [-]       absent 1 = 2
    """,
    "a compute without an answer picked the other pod": """
        [->              compute
            [-]          get = None
                [-]      get = 2
                    [-]  compute = 2
    """,
    "ends and begins at the same time: either order": """
        [---]            set 1 = None
            [---]        get = None
    """,
}

IMPOSSIBLE = {
    "stale read": """
        [-]              set 1 = None
            [-]          get = None
    """,
    "a read that goes back": """
        [-----------]    set 1 = None
         [-]             get = 1
             [-]         get = None
    """,
    "lost update": """
        [-]              set 1 = None
            [-----]      set 2 = 1
            [-----]      set 3 = 1
    """,
    "both of two try_set succeed": """
        [-------]        try 1 = (True, 1)
        [-------]        try 2 = (True, 2)
    """,
    "both move the same link": """
        [-]              set 1 = None
            [-----]      try 2 expected 1 = (True, 2)
            [-----]      try 3 expected 1 = (True, 3)
    """,
    "both remove one link": """
        [-]              set 1 = None
            [-----]      remove = True
            [-----]      remove-id 1 = True
    """,
    "two set_if_absent made two links": """
        [-------]        absent 1 = 1
        [-------]        absent 2 = 2
    """,
    "two compute picked two pods": """
        [-------]        compute = 1
        [-------]        compute = 2
    """,
    "a compute picked a pod that is not ready": """
        [-------]        compute = 3
    """,
    "a compute picked none though some are ready": """
        [-------]        compute = None
    """,
    "a value from nowhere": """
        [-]              set 1 = None
            [-]          get = 2
    """,
    "without an answer, and it happened twice": """
        [->              set 1
            [-]          get = 1
                [-]      set 2 = 1
                    [-]  get = 1
    """,
    "seen before it began": """
        [-]              get = 1
            [->          set 1
    """,
    "a link is listed while it was not": """
        [-]              remove = False
            [-]          listed = 1
    """,
    "a permanent link that has a life time": """
        [-]              set 1 = None
            [-]          ttl = 'temporary'
    """,
}


@pytest.mark.parametrize("drawing", POSSIBLE.values(), ids=POSSIBLE.keys())
def test_accepts(drawing: str) -> None:
    assert verdict(drawing) is Verdict.LINEARIZABLE


@pytest.mark.parametrize("drawing", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_rejects(drawing: str) -> None:
    assert verdict(drawing) is Verdict.IMPOSSIBLE


def test_a_pipeline_keeps_its_order() -> None:
    together = [
        Call("c", asked("set 1"), None, 0, 9, place=0),
        Call("c", asked("get"), 1, 0, 9, place=1),
        Call("c", asked("set 2"), 1, 0, 9, place=2),
    ]
    assert check(together, OUTCOMES, [None]) is Verdict.LINEARIZABLE
    swapped = [call._replace(place=2 - (call.place or 0)) for call in together]
    assert check(swapped, OUTCOMES, [None]) is Verdict.IMPOSSIBLE
    assert check([call._replace(place=None) for call in swapped], OUTCOMES, [None]) is Verdict.LINEARIZABLE


def test_says_when_it_gave_up() -> None:
    unanswered = [Call(f"c{pod}", Asked("set_linked_pod", pod, PERMANENT), None, 0, None) for pod in range(12)]
    never = Call("reader", Asked("get_linked_pod"), 99, 1, 2)
    assert check([*unanswered, never], OUTCOMES, [None], limit=1000) is Verdict.UNDECIDED


def by_all_orders(calls: list[Call]) -> bool:
    """The definition itself, which takes forever for more than a few calls."""
    answered = [call for call in calls if call.ended is not None]
    unanswered = [call for call in calls if call.ended is None]
    for count in range(len(unanswered) + 1):
        for happened in itertools.combinations(unanswered, count):
            for order in itertools.permutations([*answered, *happened]):
                in_time = all(
                    later.ended is None or later.ended >= call.began
                    for number, call in enumerate(order)
                    for later in order[number + 1 :]
                )
                if in_time and explains(order, None):
                    return True
    return False


def explains(order: tuple[Call, ...], link: Link | None) -> bool:
    if not order:
        return True
    call, *rest = order
    return any(
        explains(tuple(rest), following)
        for result, following in OUTCOMES(link, call.operation)
        if call.ended is None or result == call.result
    )


def random_history(rng: random.Random) -> list[Call]:
    """Few calls, with results that are often possible."""
    verbs = ["set 1", "set 2", "try 2", "try 1 expected 2", "absent 1", "compute", "get", "remove", "remove-id 1"]
    calls, link = [], None
    for number in range(rng.randint(2, 5)):
        operation = asked(rng.choice(verbs))
        result, following = rng.choice(list(OUTCOMES(link, operation)))
        link = following if rng.random() < 0.8 else link
        began = rng.randint(0, 12)
        ended = began + rng.randint(1, 8) if rng.random() < 0.8 else None
        calls.append(Call(f"c{number}", operation, result, began, ended))
    return calls


def test_agrees_with_the_definition() -> None:
    rng = random.Random(0)
    found = {Verdict.LINEARIZABLE: 0, Verdict.IMPOSSIBLE: 0}
    for _ in range(1000):
        calls = random_history(rng)
        told = check(calls, OUTCOMES, [None])
        assert (told is Verdict.LINEARIZABLE) == by_all_orders(calls), calls
        found[told] += 1
    assert min(found.values()) > 200


def test_the_evidence_is_small_and_impossible() -> None:
    calls = history("""
        [-]                                  set 1 = None
            [-]                              get = 1
                [-]                          set 2 = 1
                    [-]                      get = 2
                        [-]                  remove = True
                            [-]              set 1 = None
                                [-]          get = 2
                                    [-]      set 3 = 1
                                        [-]  get = 3
    """)
    evidence = smallest(calls, OUTCOMES, None, all_states(frozenset({1, 2, 3})))
    assert [str(call.operation) for call in evidence.calls] == ["set_linked_pod(1, seconds=-1)", "get_linked_pod()"]
    assert evidence.from_any_state
    assert evidence.calls[1].result == 2


def test_evidence_is_never_found_where_there_is_none() -> None:
    rng = random.Random(1)
    states = all_states(frozenset({1, 2}))
    for _ in range(300):
        calls = random_history(rng)
        if check(calls, OUTCOMES, [None]) is Verdict.IMPOSSIBLE:
            evidence = smallest(calls, OUTCOMES, None, states)
            first = states if evidence.from_any_state else [None]
            assert check(evidence.calls, OUTCOMES, first) is Verdict.IMPOSSIBLE
            assert len(evidence.calls) <= len(calls)
