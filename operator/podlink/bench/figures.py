"""What is measured, what it is held against, and the arithmetic between: no I/O, and nothing of how it is measured."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeAlias

import msgspec

from podlink.bench.plan import PODS

Unit: TypeAlias = Literal["calls/s", "us", "ms", "bytes"]

Series: TypeAlias = Mapping[str, Sequence[float]]
"""Figure -> its value in each round."""

_WHOLE: Final = 100
"""From here on, digits behind the point are noise."""


class Figure(msgspec.Struct, frozen=True):
    """Something that is measured.

    Attributes:
        name: unique.
        title: for people.
        unit: of its values; "calls/s" counts links or reads, however many of them travel together.
        group: heading it stands under.
        contender: measures it; one may measure several.
    """

    name: str
    title: str
    unit: Unit
    group: str
    contender: str


class Target(msgspec.Struct, frozen=True):
    """What a figure, or its ratio to another, ought to be.

    Attributes:
        figure: it is shown under.
        title: for people.
        over: numerator; below it stands `under`, or nothing.
        bound: to be reached.
        at_most: the bound is an upper one; else a lower one.
    """

    figure: str
    title: str
    over: str
    under: str | None
    bound: float
    at_most: bool = False


class Spread(msgspec.Struct, frozen=True):
    """The middle and the ends of what the rounds gave."""

    median: float
    low: float
    high: float


class Verdict(msgspec.Struct, frozen=True):
    """A target beside what was measured; without spread where a part of it was not."""

    target: Target
    spread: Spread | None

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the bound; None where there is none."""
        if self.spread is None:
            return None
        median, bound = self.spread.median, self.target.bound
        return median <= bound if self.target.at_most else median >= bound


_LINKS: Final = "One link a call, calls a second"
_MANY: Final = "Many links at once, links a second"
_READS: Final = "One read a call, calls a second"
_THREAD: Final = "One thread, blocking, calls a second"
_TIMES: Final = "Time of a call that is alone"
_CACHE: Final = "Reads from the cache"
_SERVER: Final = "How long the server serves nobody else"
_MEMORY: Final = "Memory of the server, for each link"


def _rate(group: str, name: str, title: str) -> Figure:
    return Figure(name, title, "calls/s", group, name)


FIGURES: Final = (
    _rate(_LINKS, "redis-benchmark", "redis-benchmark EVALSHA, P1 c50"),
    _rate(_LINKS, "raw-single", "plain sockets, packed in advance, P1 c50"),
    _rate(_LINKS, "redis-py", "redis-py asyncio, defaults, 50 tasks"),
    _rate(_LINKS, "podlink-50", "PodLink, 50 tasks"),
    _rate(_LINKS, "podlink-500", "PodLink, 500 tasks"),
    _rate(_MANY, "redis-benchmark-p100", "redis-benchmark EVALSHA, P100 c50"),
    _rate(_MANY, "raw-pipeline", "plain sockets, packed in advance, P100 c50"),
    _rate(_MANY, "redis-py-pipeline", "redis-py asyncio, pipelines of 100, 50 in flight"),
    _rate(_MANY, "podlink-bulk", "PodLink, bulk of 100, 50 in flight"),
    _rate(_READS, "redis-benchmark-get", "redis-benchmark GET, P1 c50"),
    _rate(_READS, "podlink-reads", "PodLink, 500 tasks, no cache"),
    _rate(_THREAD, "redis-py-blocking", "redis-py blocking, EVALSHA"),
    _rate(_THREAD, "podlink-blocking", "PodLink blocking"),
    Figure("redis-py-alone", "redis-py asyncio, EVALSHA", "us", _TIMES, "redis-py-alone"),
    Figure("podlink-alone", "PodLink, link", "us", _TIMES, "podlink-alone"),
    Figure("redis-py-get", "redis-py asyncio, GET", "us", _TIMES, "redis-py-get"),
    Figure("raw-get", "plain socket, GET packed in advance", "us", _TIMES, "raw-get"),
    Figure("podlink-cached", "PodLink, read", "us", _CACHE, "podlink-cached"),
    Figure("staleness-p50", "another client's write until it shows, p50", "ms", _CACHE, "staleness"),
    Figure("staleness-p99", "another client's write until it shows, p99", "ms", _CACHE, "staleness"),
    Figure("blocked-links", "largest batch of links, mean", "us", _SERVER, "blocked"),
    Figure("blocked-computes", f"largest batch of computed links, {PODS} pods, mean", "us", _SERVER, "blocked"),
    Figure("memory-minimum", "a string and a hash field alone", "bytes", _MEMORY, "memory"),
    Figure("memory-podlink", "PodLink, permanent links", "bytes", _MEMORY, "memory"),
    Figure("memory-minimum-ttl", "a string with a TTL and a hash field alone", "bytes", _MEMORY, "memory"),
    Figure("memory-podlink-ttl", "PodLink, temporary links", "bytes", _MEMORY, "memory"),
)

CONTENDERS: Final = tuple(dict.fromkeys(figure.contender for figure in FIGURES))

ONCE: Final = frozenset({"memory"})
"""Contenders that are measured once a run, before the others: what they measure does not vary."""

TARGETS: Final = (
    Target("podlink-50", "to redis-benchmark", "podlink-50", "redis-benchmark", 1.0),
    Target("podlink-50", "to redis-py", "podlink-50", "redis-py", 5.0),
    Target("podlink-500", "to redis-benchmark", "podlink-500", "redis-benchmark", 2.5),
    Target("podlink-bulk", "to plain sockets", "podlink-bulk", "raw-pipeline", 1.2),
    Target("podlink-reads", "to redis-benchmark", "podlink-reads", "redis-benchmark-get", 2.0),
    Target("podlink-blocking", "to redis-py", "podlink-blocking", "redis-py-blocking", 1.0),
    Target("podlink-alone", "to redis-py", "podlink-alone", "redis-py-alone", 1.0, at_most=True),
    Target("podlink-cached", "itself", "podlink-cached", None, 1.0, at_most=True),
    Target("podlink-cached", "redis-py's GET to it", "redis-py-get", "podlink-cached", 100.0),
    Target("staleness-p99", "itself", "staleness-p99", None, 1.0, at_most=True),
    Target("blocked-links", "itself", "blocked-links", None, 300.0, at_most=True),
    Target("blocked-computes", "itself", "blocked-computes", None, 300.0, at_most=True),
)


def spread(values: Sequence[float]) -> Spread | None:
    """Median and ends; None of nothing."""
    return Spread(statistics.median(values), min(values), max(values)) if values else None


def judge(target: Target, series: Series) -> Verdict:
    """Compare what was measured with a target.

    A ratio is one of each round, in which both were measured one after the other, so that a machine that is slower for
    a while is slower for both.
    """
    over = series.get(target.over, ())
    if target.under is None:
        return Verdict(target, spread(over))
    under = series.get(target.under, ())
    return Verdict(target, spread([a / b for a, b in zip(over, under, strict=True)]) if over and under else None)


class Line(msgspec.Struct, frozen=True):
    """One row of the table, as text. A heading has a title alone.

    Attributes:
        title: what it is.
        median: of the rounds, with the unit.
        ends: the lowest and the highest round.
        target: the bound, if there is one.
        note: whether it is met, or why nothing was measured.
        heading: whether it is the heading of a group.
    """

    title: str
    median: str = ""
    ends: str = ""
    target: str = ""
    note: str = ""
    heading: bool = False


def lines(series: Series, problems: Mapping[str, str]) -> list[Line]:
    """The table: each figure, below it its ratios, each beside its target.

    Args:
        series: as measured.
        problems: contender -> why it has no figures.
    """
    table: list[Line] = []
    group = ""
    for figure in FIGURES:
        if figure.name not in series and figure.contender not in problems:
            continue
        if figure.group != group:
            group = figure.group
            table.append(Line(group, heading=True))
        table += _of_figure(figure, series, problems)
    return table


def _of_figure(figure: Figure, series: Series, problems: Mapping[str, str]) -> list[Line]:
    verdicts = [judge(target, series) for target in TARGETS if target.figure == figure.name]
    own = next((verdict for verdict in verdicts if verdict.target.under is None), None)
    measured = spread(series.get(figure.name, ()))
    told = Line(
        figure.title,
        median=f"{_digits(measured.median)} {figure.unit}" if measured else "not measured",
        ends=_ends(measured) if measured else "",
        target=f"{_bound(own.target)} {figure.unit}" if own else "",
        note=_met(own) if own and measured else problems.get(figure.contender, ""),
    )
    known = {*series, *(each.name for each in FIGURES if each.contender in problems)}
    ratios = (verdict for verdict in verdicts if verdict.target.under in known and verdict.target.over in known)
    return [told, *map(_of_ratio, ratios)]


def _of_ratio(verdict: Verdict) -> Line:
    return Line(
        f"… {verdict.target.title}",
        median=f"{_digits(verdict.spread.median)} x" if verdict.spread else "not measured",
        ends=_ends(verdict.spread) if verdict.spread else "",
        target=_bound(verdict.target),
        note=_met(verdict),
    )


def _bound(target: Target) -> str:
    return f"{'at most' if target.at_most else 'at least'} {target.bound:g}"


def _met(verdict: Verdict) -> str:
    return {True: "met", False: "NOT MET", None: ""}[verdict.met]


def _ends(measured: Spread) -> str:
    return f"{_digits(measured.low)} - {_digits(measured.high)}" if measured.low != measured.high else ""


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= _WHOLE else f"{value:.3g}"
