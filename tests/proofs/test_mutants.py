"""The tests notice when the code is broken on purpose.

pytest tests/proofs/test_mutants.py --hypothesis-profile=long --timeout=0      all mutants, and not just some
"""

from __future__ import annotations

from hypothesis import settings

from podlink.store import scripts
from proofs.judging import Judge, tests_of
from proofs.mutants import MUTANTS, Mutant

A_FILE = 2
"""So many mutants of each file are given to tests that run in a process of their own, which takes a second or two."""


def some() -> list[Mutant]:
    """All that random histories should notice, and a few of the others of each file."""
    apart: dict[str, list[Mutant]] = {}
    for mutant in MUTANTS:
        if tests_of(mutant):
            apart.setdefault(mutant.source, []).append(mutant)
    kept = {mutant for of_file in apart.values() for mutant in of_file[:A_FILE]}
    return [mutant for mutant in MUTANTS if mutant in kept or not tests_of(mutant)]


def test_every_script_is_broken_in_several_ways() -> None:
    for script in scripts.ALL:
        assert len([mutant for mutant in MUTANTS if mutant.source == script.name]) >= 3


def test_the_histories_find_no_fault_in_scripts_that_are_whole() -> None:
    with Judge() as judge:
        assert not judge.seen_in_histories(None)


def test_what_is_broken_is_noticed() -> None:
    chosen = MUTANTS if settings.get_current_profile_name() == "long" else some()
    with Judge() as judge:
        assert [str(mutant) for mutant, by in judge.verdicts(chosen) if by is None] == []
