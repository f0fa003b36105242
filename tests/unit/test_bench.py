"""The arithmetic of the bench, and that figures, targets, table and chart speak of the same things."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from podlink.bench.chart import as_svg
from podlink.bench.figures import CONTENDERS, FIGURES, ONCE, TARGETS, Target, judge, lines, spread
from podlink.bench.page import as_page
from podlink.bench.report import Report
from podlink.bench.staleness import stale_milliseconds
from podlink.bench.worker import MEASURES

DOCS = Path(__file__).parents[2] / "docs"

NAMES = {figure.name for figure in FIGURES}

# What the project set out to reach.
AT_LEAST = {
    ("podlink-50", "redis-benchmark"): 1.0,
    ("podlink-500", "redis-benchmark"): 2.5,
    ("podlink-50", "redis-py"): 5.0,
    ("podlink-bulk", "raw-pipeline"): 1.2,
    ("podlink-reads", "redis-benchmark-get"): 2.0,
    ("podlink-blocking", "redis-py-blocking"): 1.0,
    ("redis-py-get", "podlink-cached"): 100.0,
}
AT_MOST = {
    ("podlink-alone", "redis-py-alone"): 1.0,
    ("podlink-cached", None): 1.0,
    ("staleness-p99", None): 1.0,
    ("blocked-links", None): 300.0,
    ("blocked-computes", None): 300.0,
}


def test_targets_are_those_that_were_set() -> None:
    assert {(each.over, each.under): each.bound for each in TARGETS if not each.at_most} == AT_LEAST
    assert {(each.over, each.under): each.bound for each in TARGETS if each.at_most} == AT_MOST
    units = {figure.name: figure.unit for figure in FIGURES}
    assert [units[name] for name in ("podlink-cached", "staleness-p99", "blocked-links")] == ["us", "ms", "us"]


def test_every_name_is_known_to_all() -> None:
    assert len(NAMES) == len(FIGURES)
    assert set(MEASURES) == set(CONTENDERS)
    assert set(CONTENDERS) >= ONCE
    assert {name for each in TARGETS for name in (each.figure, each.over, each.under) if name} <= NAMES


@pytest.mark.parametrize(
    ("values", "told"),
    [([], None), ([3.0], (3, 3, 3)), ([5.0, 1.0, 2.0], (2, 1, 5)), ([4.0, 1.0], (2.5, 1, 4))],
)
def test_spread(values: list[float], told: tuple[float, float, float] | None) -> None:
    found = spread(values)
    assert (found and (found.median, found.low, found.high)) == told


RATIO = Target("ours", "to theirs", "ours", "theirs", 2.0)
INVERSE = Target("ours", "to it", "theirs", "ours", 2.0)
AT_MOST_ONE = Target("ours", "to theirs", "ours", "theirs", 1.0, at_most=True)
ITSELF = Target("ours", "itself", "ours", None, 30.0, at_most=True)


@pytest.mark.parametrize(
    ("target", "ours", "theirs", "median", "met"),
    [
        (RATIO, [20.0], [10.0], 2.0, True),
        (RATIO, [19.9], [10.0], 1.99, False),
        # Round by round: 10, 1 and 2; the medians alone would say 0.2.
        (RATIO, [100.0, 10.0, 2.0], [10.0, 10.0, 1.0], 2.0, True),
        (INVERSE, [10.0], [20.0], 2.0, True),
        (INVERSE, [20.0], [10.0], 0.5, False),
        (AT_MOST_ONE, [10.0], [10.0], 1.0, True),
        (AT_MOST_ONE, [10.1], [10.0], 1.01, False),
        (ITSELF, [10.0, 30.0, 90.0], [], 30.0, True),
        (ITSELF, [10.0, 31.0, 90.0], [], 31.0, False),
        (RATIO, [10.0], [], None, None),
        (RATIO, [], [10.0], None, None),
        (ITSELF, [], [], None, None),
    ],
)
def test_a_ratio_is_formed_in_each_round(
    target: Target, ours: list[float], theirs: list[float], median: float | None, met: bool | None
) -> None:
    verdict = judge(target, {"ours": ours, "theirs": theirs})
    assert verdict.met is met
    assert (verdict.spread and verdict.spread.median) == (median if median is None else pytest.approx(median))


def test_the_table_says_what_was_reached_and_what_was_not() -> None:
    series = {
        "redis-benchmark": [80_000.0, 90_000.0, 100_000.0],
        "podlink-50": [80_000.0, 89_000.0, 98_000.0],
        "podlink-cached": [0.25, 0.5, 2.0],
        "redis-py-get": [30.0, 60.0, 200.0],
    }
    told = [
        (each.title, each.median, each.ends, each.target, each.note)
        for each in lines(series, {"redis-py": "it is away"})
        if not each.heading
    ]
    assert told == [
        ("redis-benchmark EVALSHA, P1 c50", "90,000 calls/s", "80,000 - 100,000", "", ""),
        ("redis-py asyncio, defaults, 50 tasks", "not measured", "", "", "it is away"),
        ("PodLink, 50 tasks", "89,000 calls/s", "80,000 - 98,000", "", ""),
        ("… to redis-benchmark", "0.989 x", "0.98 - 1", "at least 1", "NOT MET"),
        ("… to redis-py", "not measured", "", "at least 5", ""),
        ("redis-py asyncio, GET", "60 us", "30 - 200", "", ""),
        ("PodLink, read", "0.5 us", "0.25 - 2", "at most 1 us", "met"),
        ("… redis-py's GET to it", "120 x", "100 - 120", "at least 100", "met"),
    ]


def test_a_heading_stands_above_each_group() -> None:
    told = lines({figure.name: [1.0] for figure in FIGURES}, {})
    headings = [each.title for each in told if each.heading]
    assert headings == list(dict.fromkeys(figure.group for figure in FIGURES))
    assert [each.title for each in told if not each.heading and not each.title.startswith("…")] == [
        figure.title for figure in FIGURES
    ]


def test_page_and_chart_are_those_of_the_published_figures() -> None:
    found = msgspec.json.decode((DOCS / "bench.json").read_bytes(), type=Report)
    # Where this fails, the generator was changed and they were not written anew: `make bench` does.
    assert as_page(found) == (DOCS / "benchmarks.md").read_text()
    assert as_svg(found) == (DOCS / "bench.svg").read_text()


def test_a_write_shows_when_a_later_one_does() -> None:
    seen = [(1, 0.0025), (3, 0.0045), (2**31 - 1, 0.02)]
    assert stale_milliseconds([0.002, 0.003, 0.004, 0.01], seen) == pytest.approx([0.5, 1.5, 0.5, 10.0])
