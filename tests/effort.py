"""How long tests look for rare faults: short in the suite, long in `make proofs`."""

from __future__ import annotations

from typing import TypeVar

from hypothesis import settings

T = TypeVar("T")


def by_profile(suite: T, long: T) -> T:
    """Return the value for the suite, or the one for `--hypothesis-profile=long`."""
    return long if settings.get_current_profile_name() == "long" else suite
