"""What a run found, for people (a table, a page) and for programs (JSON); all of it is made from the same figures."""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from podlink.bench.figures import FIGURES, TARGETS, Line, Series, Spread, Unit, judge, lines, spread
from podlink.bench.server import Server

_HEAD: Final = Line("", "median", "lowest - highest", "target", "")


class Machine(msgspec.Struct, frozen=True):
    """Where it ran. The load is that of the minute before: figures of a busy machine say little."""

    cores: int
    cpu: str
    system: str
    python: str
    load_before: float


class Settings(msgspec.Struct, frozen=True):
    """What was asked for."""

    rounds: int
    seconds: float
    links: int
    memory_links: int


class Measured(msgspec.Struct, frozen=True):
    """One figure."""

    name: str
    title: str
    unit: Unit
    rounds: Sequence[float]
    problem: str = ""
    median: float | None = None
    lowest: float | None = None
    highest: float | None = None


class Compared(msgspec.Struct, frozen=True):
    """One target: `over` is held against its bound, or, where there is an `under`, their ratio in each round."""

    over: str
    under: str | None
    at_least: float | None = None
    at_most: float | None = None
    median: float | None = None
    lowest: float | None = None
    highest: float | None = None
    met: bool | None = None


class Report(msgspec.Struct, frozen=True):
    """Everything a run found."""

    podlink: str
    libraries: Mapping[str, str]
    when: datetime
    machine: Machine
    server: Server
    settings: Settings
    figures: Sequence[Measured]
    targets: Sequence[Compared]

    @property
    def series(self) -> dict[str, Sequence[float]]:
        """The rounds of each figure that was measured."""
        return {figure.name: figure.rounds for figure in self.figures if figure.rounds}

    @property
    def lines(self) -> list[Line]:
        """The table."""
        contender = {figure.name: figure.contender for figure in FIGURES}
        return lines(self.series, {contender[each.name]: each.problem for each in self.figures if each.problem})


def machine() -> Machine:
    """Look around, before the run makes itself felt."""
    return Machine(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        cpu=_cpu(),
        system=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        load_before=round(os.getloadavg()[0], 2),
    )


def report(
    where: Machine,
    server: Server,
    settings: Settings,
    series: Series,
    problems: Mapping[str, str],
) -> Report:
    """Put together what was found.

    Args:
        where: as of before the run.
        server: that was measured.
        settings: of the run.
        series: figure -> its value in each round.
        problems: contender -> why it has no figures.
    """
    return Report(
        podlink=version("podlink"),
        libraries={name: version(name) for name in ("redis", "hiredis")},
        when=datetime.now(UTC).replace(microsecond=0),
        machine=where,
        server=server,
        settings=settings,
        figures=list(_figures(series, problems)),
        targets=list(_targets(series)),
    )


def as_json(found: Report) -> str:
    """With every round's figure."""
    return msgspec.json.format(msgspec.json.encode(found).decode(), indent=2) + "\n"


def as_text(found: Report) -> str:
    """The table, in columns."""
    rows = [_HEAD, *found.lines]
    widths = [max(len(_cells(row)[column]) for row in rows) for column in range(len(_cells(_HEAD)))]
    told = [*summary(found), ""]
    for row in rows:
        if row.heading:
            told.append(row.title)
            continue
        title, *numbers, note = _cells(row)
        padded = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=False)]
        told.append("  ".join([title.ljust(widths[0]), *padded, note]).rstrip())
    return "\n".join(told)


def summary(found: Report) -> list[str]:
    """What was measured, where and how, a sentence a line."""
    libraries = ", ".join(f"{name} {number}" for name, number in found.libraries.items())
    where, how = found.machine, found.settings
    server = f"{found.server.name} {found.server.version}"
    rounds = "1 round" if how.rounds == 1 else f"{how.rounds} rounds"
    return [
        f"PodLink {found.podlink} with {libraries} on {where.python}, against {server}.",
        f"{where.cores} cores ({where.cpu}), {where.system}, load {where.load_before} before the run.",
        f"{rounds} of {how.seconds:g} s for each, {how.links:,} links; {found.when:%Y-%m-%d %H:%M} UTC.",
    ]


def _cells(line: Line) -> list[str]:
    title = line.title if line.heading else f"  {line.title}"
    return [title, line.median, line.ends, line.target, line.note]


def _figures(series: Series, problems: Mapping[str, str]) -> Iterator[Measured]:
    for figure in FIGURES:
        problem = problems.get(figure.contender, "")
        rounds = series.get(figure.name, ())
        if rounds or problem:
            of_rounds = _ends(spread(rounds))
            yield Measured(figure.name, figure.title, figure.unit, rounds=rounds, problem=problem, **of_rounds)


def _targets(series: Series) -> Iterator[Compared]:
    for target in TARGETS:
        verdict = judge(target, series)
        bound = {"at_most" if target.at_most else "at_least": target.bound}
        yield Compared(target.over, target.under, met=verdict.met, **bound, **_ends(verdict.spread))


def _ends(found: Spread | None) -> dict[str, float]:
    return {"median": found.median, "lowest": found.low, "highest": found.high} if found else {}


def _cpu() -> str:
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        told = ""
    names = [line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
