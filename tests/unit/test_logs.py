"""Logs are read by people and by machines: one line each, with fields under their own names."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from podlink.logs import BriefLibraryErrors, JsonFormatter, RateLimit, TextFormatter, configure

if TYPE_CHECKING:
    from collections.abc import Iterator


def record(message: str = "swept in %.2f s", *args: object, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("podlink.sweep", logging.INFO, __file__, 1, message, args, None)
    made.created = 1_714_564_800.0625
    made.__dict__.update(fields)
    return made


def test_text_is_one_line_of_time_level_logger_message_and_fields() -> None:
    line = TextFormatter().format(record("swept in %.2f s", 1.5, cause="re list", namespace="games"))
    assert line == "2024-05-01T12:00:00.062Z INFO    podlink.sweep swept in 1.50 s cause='re list' namespace='games'"


def test_json_has_message_and_fields_under_their_names() -> None:
    line = JsonFormatter().format(record("swept in %.2f s", 1.5, cause="relist", port=8080, ok=True))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2024-05-01T12:00:00.062Z",
        "level": "info",
        "logger": "podlink.sweep",
        "message": "swept in 1.50 s",
        "cause": "relist",
        "port": 8080,
        "ok": True,
    }


def test_json_keeps_all_scripts_and_line_breaks_inside_one_line() -> None:
    line = JsonFormatter().format(record("uid %s", "ü\n玩家"))
    assert "玩家" in line
    assert "\n" not in line
    assert json.loads(line)["message"] == "uid ü\n玩家"


def test_time_can_be_read_back() -> None:
    entry = json.loads(JsonFormatter().format(record("ready")))
    assert datetime.fromisoformat(entry["time"]).timestamp() == pytest.approx(1_714_564_800.0625, abs=0.001)


@pytest.mark.parametrize("value", [None, object(), ["a"], {"a": 1}], ids=["null", "object", "list", "dict"])
def test_fields_that_are_no_plain_values_are_left_out(value: object) -> None:
    assert "weird" not in json.loads(JsonFormatter().format(record("ready", weird=value)))
    assert "weird" not in TextFormatter().format(record("ready", weird=value))


def failed(logger: str = "podlink.sweep") -> logging.LogRecord:
    made = record("sweep failed")
    made.name = logger
    try:
        raise ValueError("no such service")  # noqa: TRY301 - it is the exception itself that is logged
    except ValueError:
        made.exc_info = sys.exc_info()
    return made


def test_traceback_is_below_the_line_of_text() -> None:
    head, _, traceback = TextFormatter().format(failed()).partition("\n")
    assert head.endswith("sweep failed")
    assert traceback.startswith("Traceback (most recent call last):")
    assert traceback.endswith("ValueError: no such service")


def test_traceback_is_a_field_in_json() -> None:
    line = JsonFormatter().format(failed())
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("ValueError: no such service")


@pytest.fixture
def untouched_logging() -> Iterator[None]:
    """Gives the process its logging back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in list(logging.root.manager.loggerDict)}
    yield
    root.handlers[:], root.level = handlers, level
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_logs_go_to_standard_error(
    log_format: Any, untouched_logging: None, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(log_format)
    logging.getLogger("podlink.test").info("operator started", extra={"http_port": 8080})
    logging.getLogger("podlink.test").debug("not this")
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    if log_format == "json":
        assert json.loads(line)["http_port"] == 8080
    else:
        assert line.endswith("INFO    podlink.test operator started http_port=8080")


def test_one_line_an_event_is_too_much(untouched_logging: None, capsys: pytest.CaptureFixture[str]) -> None:
    configure("text")
    logging.getLogger("kopf.objects").info("Handler succeeded")
    logging.getLogger("aiohttp.access").info("GET /healthz")
    logging.getLogger("kopf.objects").warning("a real one")
    assert capsys.readouterr().err.count("\n") == 1


def test_an_outage_that_kopf_meets_is_one_line() -> None:
    entry = failed("kopf._cogs.clients.watching")
    assert BriefLibraryErrors().filter(entry)
    line = TextFormatter().format(entry)
    assert line.endswith("sweep failed error='ValueError: no such service'")
    assert "\n" not in line


@pytest.mark.parametrize("logger", ["kopf.objects", "podlink.sweep"])
def test_faults_of_ours_keep_their_traceback(logger: str) -> None:
    entry = failed(logger)
    assert BriefLibraryErrors().filter(entry)
    assert "Traceback" in TextFormatter().format(entry)


def test_a_storm_of_one_kind_is_cut_short_and_counted() -> None:
    now = 0.0
    limit = RateLimit(clock=lambda: now)

    def passed(message: str, level: int = logging.WARNING) -> list[logging.LogRecord]:
        made = [logging.LogRecord("podlink.test", level, "", 0, message, (number,), None) for number in range(100)]
        return [each for each in made if limit.filter(each)]

    assert len(passed("PodLink %s: refused")) == 30
    # Another kind, and what is no warning, are not held back by it.
    assert len(passed("Event %s: refused")) == 30
    assert len(passed("PodLink %s is Linked", logging.INFO)) == 100
    assert passed("PodLink %s: refused") == []
    now = 60.0
    first, *others = passed("PodLink %s: refused")
    assert first.__dict__["left_out"] == 170
    assert all("left_out" not in each.__dict__ for each in others)
