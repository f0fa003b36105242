"""One run: every contender in turn, round after round, and everything that was written removed again."""

import contextlib
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final
from urllib.parse import urlsplit

import click
import msgspec
import redis

from podlink.bench import report, server
from podlink.bench.chart import as_svg
from podlink.bench.figures import CONTENDERS, ONCE
from podlink.bench.page import as_page
from podlink.bench.plan import Plan
from podlink.bench.report import Report, Settings
from podlink.bench.server import BenchError
from podlink.bench.worker import Answer
from podlink.bench.workers import Workers
from podlink.domain.errors import InvalidArgument

_SCHEMES: Final = ("redis", "rediss", "unix")
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Outputs(msgspec.Struct, frozen=True):
    """Files to write besides the table on the terminal.

    Attributes:
        json: all figures of all rounds.
        chart: SVG.
        docs: directory that gets the page `benchmarks.md`, its chart `bench.svg`, and `bench.json`.
    """

    json: Path | None = None
    chart: Path | None = None
    docs: Path | None = None


def bench(url: str, settings: Settings, only: tuple[str, ...], outputs: Outputs) -> None:
    """Measure, print the table, and write the files.

    Args:
        url: of one Redis or Valkey server, as of `StatefulExecutor.from_url`.
        settings: how much and how often.
        only: contenders; all when empty.
        outputs: files to write.

    Raises:
        PodLinkError: the server cannot be used, or a file cannot be written.
    """
    files = [(outputs.json, report.as_json), (outputs.chart, as_svg)]
    if outputs.docs:
        files += [(outputs.docs / "benchmarks.md", as_page), (outputs.docs / "bench.svg", as_svg)]
        files += [(outputs.docs / "bench.json", report.as_json)]
    wanted = [(path, write) for path, write in files if path]
    for path, _ in wanted:
        # Not after some minutes of measuring.
        _check_writable(path)
    found = measure(url, settings, only)
    click.echo(report.as_text(found))
    for path, write in wanted:
        try:
            path.write_text(write(found), encoding="utf-8")
        except OSError as error:
            raise BenchError(f"{path} could not be written: {error.strerror}") from error


def measure(url: str, settings: Settings, only: tuple[str, ...] = ()) -> Report:
    """Measure; nothing that was written stays, also after Ctrl-C and SIGTERM.

    Raises:
        InvalidArgument: the URL is not that of one server.
        PodLinkError: the server cannot be used.
        KeyboardInterrupt: on one of these signals.
    """
    if (scheme := urlsplit(url).scheme) not in _SCHEMES:
        raise InvalidArgument(
            f"the bench measures one server, not {scheme}://: give redis:// or unix://", argument="url"
        )
    where = report.machine()
    chosen = [contender for contender in CONTENDERS if contender in only or not only]
    plan = Plan(
        url=url,
        namespace=f"podlink-bench-{uuid.uuid4().hex[:8]}",
        links=settings.links,
        memory_links=settings.memory_links if "memory" in chosen else 0,
        seconds=settings.seconds,
    )
    gathered: dict[str, list[Answer]] = {contender: [] for contender in chosen}
    try:
        who = server.look(plan)
        with _ended_by_signals(), _removed_again(plan), Workers() as workers:
            for contender in _schedule(plan, settings, chosen):
                answers = gathered[contender]
                if not any(answer.problem for answer in answers):
                    answers.append(workers.ask(contender, plan))
    except redis.RedisError as error:
        raise BenchError(f"the server failed in the middle: {error}") from error
    problems = {contender: answers[-1].problem for contender, answers in gathered.items() if answers[-1].problem}
    series = {
        name: [answer.figures[name] for answer in answers]
        for contender, answers in gathered.items()
        if contender not in problems  # one that failed once has no figures at all: they would be of fewer rounds
        for name in answers[0].figures
    }
    return report.report(where, who, settings, series, problems)


def _check_writable(path: Path) -> None:
    if not os.access(path, os.F_OK):
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise BenchError(f"{path} cannot be written: {path.parent} is no directory that one can write to")
    elif path.is_dir():
        raise BenchError(f"{path} cannot be written: it is a directory; remove it, or name another place")
    elif not os.access(path, os.W_OK):
        raise BenchError(f"{path} cannot be written: it is there and read-only; remove it, or name another place")


def _schedule(plan: Plan, settings: Settings, chosen: list[str]) -> Iterator[str]:
    """Contenders in the order in which they are asked."""
    for contender in chosen:
        if contender in ONCE:
            _tell(contender)
            yield contender
    in_turn = [contender for contender in chosen if contender not in ONCE]
    if in_turn:
        server.fill(plan)
    for number in range(1, settings.rounds + 1):
        for contender in in_turn:
            _tell(f"round {number} of {settings.rounds}: {contender}")
            yield contender


def _tell(what: str) -> None:
    click.echo(what, err=True)


@contextlib.contextmanager
def _removed_again(plan: Plan) -> Iterator[None]:
    names = f"sf:{{{plan.namespace}:*"
    _tell(f"writes keys {names} and removes them again")
    try:
        yield
    finally:
        try:
            server.clear(plan)
        except redis.RedisError as error:
            raise BenchError(f"keys {names} could not be removed: {error}") from error


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Leave the block in good order on a signal; while that goes on, further ones are ignored."""

    def end(_number: int, _frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, end) for each in _SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
