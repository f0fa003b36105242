"""What walks and readings of the load prove about one pod, and what they leave open."""

from __future__ import annotations

import pytest

from podlink.store.counting.tally import Bounds, Tally


def tally(walks: list[str], loads: list[int]) -> Tally:
    """Of walks that saw these uids (one letter each), with these loads read meanwhile."""
    made = Tally()
    for number, uids in enumerate(walks):
        for uid in uids:
            made.see(uid)
        made.end_walk(first=number == 0)
    for load in loads:
        made.read(load)
    return made


@pytest.mark.parametrize(
    ("walks", "loads", "lacks"),
    [
        (["abc"], [3], 0),
        (["abc"], [0], 3),
        (["abc"], [5], -2),
        (["abc", "abc"], [1, 1], 2),
        (["abc", "abc"], [1, 2], 1),
        (["abc", "abc"], [5, 4], -1),
        (["abc", "abd"], [2, 2], 0),
        (["abc", "abd"], [3, 3], 0),
        (["abc", "abd"], [4, 4], 0),
        (["abc", "abd"], [1, 1], 1),
        (["abc", "abd"], [6, 6], -2),
        (["abc", "def", "abc"], [3, 3], 0),
        (["", "a"], [0, 0], 0),
        (["a", ""], [1, 1], 0),
        (["", ""], [2, 2], -2),
        (["abc", "abc"], [0, 9], 0),
        (["aabbb"], [2], 0),
        ([], [2], -2),
    ],
)
def test_what_a_load_lacks(walks: list[str], loads: list[int], lacks: int) -> None:
    made = tally(walks, loads)
    assert made.bounds
    assert made.bounds.lacks == lacks
    assert made.links == len(set("".join(walks)))


def test_a_pod_first_seen_by_a_later_walk_has_no_link_for_sure() -> None:
    late = Tally()
    late.see("a")
    late.end_walk(first=False)
    assert late.bounds is None
    late.read(0)
    assert late.bounds == Bounds(always=0, ever=1, least=0, most=0)
