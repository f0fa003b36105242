"""The tests notice when the code is broken on purpose.

pytest tests/proofs/test_mutants.py --hypothesis-profile=long --timeout=0      all of them, not just some
"""

from __future__ import annotations

import pytest

from effort import by_profile
from podlink.store.operations import scripts
from proofs.judging import Judge, noticers_of
from proofs.mutants import MUTANTS, REPOSITORY, Mutant

IN_HISTORIES, BY_TESTS = 4, 1
"""So many mutants of each file are tried, of those that random histories should notice and of the others. One takes
half a second, and one of the others, whose tests have a process of their own, one or two."""


def some() -> list[Mutant]:
    """A few of each file, and of each way to notice them."""
    groups: dict[tuple[str, bool], list[Mutant]] = {}
    for mutant in MUTANTS:
        groups.setdefault((mutant.source, bool(noticers_of(mutant))), []).append(mutant)
    return [mutant for (_, apart), group in groups.items() for mutant in group[: BY_TESTS if apart else IN_HISTORIES]]


def test_every_script_is_broken_in_several_ways() -> None:
    for script in scripts.ALL:
        assert len([mutant for mutant in MUTANTS if mutant.source == script.name]) >= 3


def test_all_of_them_fit_their_files() -> None:
    for mutant in MUTANTS:
        mutant.apply((REPOSITORY / mutant.path).read_text())


def test_the_histories_find_no_fault_in_scripts_that_are_whole() -> None:
    with Judge() as judge:
        assert not judge.seen_in_histories(None)


@pytest.mark.timeout(900)
def test_what_is_broken_is_noticed() -> None:
    chosen = by_profile(some(), MUTANTS)
    with Judge() as judge:
        assert [str(mutant) for mutant, by in judge.verdicts(chosen) if by is None] == []
