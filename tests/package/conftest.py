"""The wheel of this checkout, and environments that it is installed in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from package.environments import Environment

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(where)]
    built = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=120)
    assert built.returncode == 0, built.stderr
    (found,) = where.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Environment]:
    """Returns the environment with an extra, or with none for an empty name; made once."""
    made: dict[str, Environment] = {}

    def environment(extra: str) -> Environment:
        if extra not in made:
            made[extra] = Environment(tmp_path_factory.mktemp(extra or "library"), wheel, extra)
        return made[extra]

    return environment
