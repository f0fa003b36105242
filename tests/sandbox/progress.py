"""How far a build is, and how long it will still take: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import math
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PLAIN_REPORT_SECONDS = 15

# Measured with `go build -debug-actiongraph` on Kubernetes 1.34: a package takes 0.3 s of CPU, and 1 s more for each
# 285 KB of Go; linking a program takes 5 s. Here all of it is in bytes.
_BYTES_A_PACKAGE = 85_000
_BYTES_A_PROGRAM = 1_500_000

# Before this share of the work is done, the time left would be a guess.
_FIRST_ESTIMATE = 0.03

console = Console(stderr=True, highlight=False, soft_wrap=True)


class Package(NamedTuple):
    """A Go package that is to be compiled.

    Attributes:
        source_bytes: of its Go files.
        program: it is linked afterwards.
    """

    source_bytes: int
    program: bool

    @property
    def cost(self) -> int:
        """What compiling it costs, compared with others."""
        return self.source_bytes + _BYTES_A_PACKAGE + (_BYTES_A_PROGRAM if self.program else 0)


def share_done(packages: Mapping[str, Package], log: str) -> float | None:
    """How much of a build is done, from 0 to 1; None when there is only to link.

    Args:
        packages: what had to be compiled when it began, by import path.
        log: of `go build -v`, which names each package when it begins to compile it.
    """
    if not packages:
        return None
    begun = [packages[line] for line in log.splitlines() if line in packages]
    # The last ones are still being compiled, one on each core.
    done = begun[: -(os.cpu_count() or 1)]
    total = sum(package.cost for package in packages.values())
    return sum(package.cost for package in done) / total


def time_left(elapsed_seconds: float, share: float) -> str:
    """How long the rest takes if it goes on as it went so far, in words; empty while nobody can know."""
    if share < _FIRST_ESTIMATE:
        return ""
    seconds = elapsed_seconds * (1 - share) / share
    return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {10 * math.ceil(seconds / 10)} s left"


def seconds_since(started: float) -> str:
    """The time since `started`, of time.monotonic, in words."""
    return f"{time.monotonic() - started:.0f} s"


@contextlib.contextmanager
def shown() -> Iterator[Callable[[str, float | None], None]]:
    """Show how something goes on: call what this yields with a text and the share that is done, None when unknown."""
    if console.is_terminal and not console.is_dumb_terminal:
        with _bar() as report:
            yield report
        return
    next_report = 0.0

    def print_now_and_then(text: str, share: float | None) -> None:
        nonlocal next_report
        if time.monotonic() >= next_report:
            console.print(text if share is None else f"{text}, {share:.0%}")
            next_report = time.monotonic() + PLAIN_REPORT_SECONDS

    yield print_now_and_then


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[str, float | None], None]]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[percent]}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None, percent="")

        def report(text: str, share: float | None) -> None:
            if share is None:
                progress.update(task, description=text)
            else:
                progress.update(task, description=text, total=1, completed=share, percent=f"{share:.0%}")

        yield report
