"""How long the tests take: `python -m sandbox.timings OPTIONS` runs pytest with these options, and writes it down.

The part of docs/maintainers/tests.md between its two comments is replaced, if all tests passed.
"""

from __future__ import annotations

import collections
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from sandbox.cluster import REPOSITORY

PAGE = REPOSITORY / "docs" / "maintainers" / "tests.md"
SLOWEST = 20

_WRITTEN = re.compile(r"(<!-- make timings: begin -->\n).*(<!-- make timings: end -->\n)", re.DOTALL)


class Timed(NamedTuple):
    """One test of a run.

    Attributes:
        directory: below tests/.
        name: file and function, with parameters.
        seconds: with the fixtures that were made for it.
    """

    directory: str
    name: str
    seconds: float


class Run(NamedTuple):
    """A run of pytest.

    Attributes:
        seconds: from start to end.
        cpu_seconds: of all processes that it started and that ended.
        load: the mean number of processes that ran or wanted to run, in the minute before.
    """

    tests: list[Timed]
    seconds: float
    cpu_seconds: float
    load: float
    options: str


def measure(options: list[str]) -> Run:
    """Run pytest.

    Raises:
        subprocess.CalledProcessError: a test failed.
    """
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="podlink-timings-") as directory:
        report = Path(directory, "report.xml")
        begun, used = time.monotonic(), _cpu_seconds()
        command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}"]
        subprocess.run(command, cwd=REPOSITORY, check=True)
        seconds, cpu_seconds = time.monotonic() - begun, _cpu_seconds() - used
        return Run(read(report.read_text()), seconds, cpu_seconds, load, " ".join(options))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def read(report: str) -> list[Timed]:
    """Return the tests of a JUnit report of pytest."""
    tests = []
    for case in ET.fromstring(report).iter("testcase"):  # noqa: S314 - pytest has just written it
        _, directory, *file = case.attrib["classname"].split(".")
        name = "::".join([*file, case.attrib["name"]])
        tests.append(Timed(directory, name, float(case.attrib["time"])))
    return tests


def describe(run: Run) -> str:
    """Return the text for the page."""
    directories: dict[str, list[float]] = collections.defaultdict(list)
    for test in run.tests:
        directories[test.directory].append(test.seconds)
    slowest = sorted(run.tests, key=lambda test: -test.seconds)[:SLOWEST]
    bar = "\\|"  # else it would end a cell
    return "\n".join(
        [
            "",
            f"{len(run.tests):,} tests in {_minutes(run.seconds)}, with {_minutes(run.cpu_seconds)} of CPU time.",
            f"{os.cpu_count()} cores, CPython {platform.python_version()}, load {run.load:.2f} before the run,",
            f"`pytest {run.options}`; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
            "",
            "| directory | tests | seconds, added up |",
            "|---|---:|---:|",
            *(f"| `{name}` | {len(each):,} | {sum(each):.0f} |" for name, each in sorted(directories.items())),
            "",
            f"The slowest {SLOWEST}, with the fixtures that were made for them:",
            "",
            "| test | seconds |",
            "|---|---:|",
            *(f"| `{test.directory}/{test.name.replace('|', bar)}` | {test.seconds:.1f} |" for test in slowest),
            "",
            "",
        ]
    )


def _minutes(seconds: float) -> str:
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def main() -> None:
    """Measure, and write the page."""
    try:
        run = measure(sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: pytest ended with {error.returncode}; {PAGE.relative_to(REPOSITORY)} is left as it was")
    PAGE.write_text(_WRITTEN.sub(lambda found: found[1] + describe(run) + found[2], PAGE.read_text()))
    print(PAGE.relative_to(REPOSITORY))  # noqa: T201 - what was done


if __name__ == "__main__":
    main()
