"""What a report of pytest says becomes the tables of docs/maintainers/tests.md."""

from __future__ import annotations

from sandbox.timings import Run, Timed, describe, read

REPORT = """
<testsuites><testsuite tests="3">
  <testcase classname="tests.store.test_links" name="test_link[valkey]" time="2.5"/>
  <testcase classname="tests.store.test_links.TestMore" name="test_host[a@b]" time="0.5"/>
  <testcase classname="tests.faults.test_redis" name="test_hang[a|b]" time="20"/>
</testsuite></testsuites>
"""


def test_a_report_is_read() -> None:
    assert read(REPORT) == [
        Timed("store", "test_links::test_link[valkey]", 2.5),
        Timed("store", "test_links::TestMore::test_host[a@b]", 0.5),
        Timed("faults", "test_redis::test_hang[a|b]", 20),
    ]


def test_the_page_shows_the_slowest_first_and_each_directory() -> None:
    page = describe(Run(read(REPORT), seconds=83, cpu_seconds=120.4, load=0.5, options="-n 3"))

    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [
        "| `faults` | 1 | 20 |",
        "| `store` | 2 | 3 |",
        "| `faults/test_redis::test_hang[a\\|b]` | 20.0 |",
        "| `store/test_links::test_link[valkey]` | 2.5 |",
        "| `store/test_links::TestMore::test_host[a@b]` | 0.5 |",
    ]
    assert "3 tests in 1 min 23 s, with 2 min 0 s of CPU time." in page
