"""Structured logs: every record is a message and named fields, as text for people or as JSON for machines."""

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Literal

from podlink import tracing

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

_KOPF = "kopf"
_HANDLERS = "kopf.objects"
"""Where Kopf logs what a handler raised, which would be a fault of ours."""

_WINDOW_SECONDS = 60.0
_MOST_IN_WINDOW = 30
"""Warnings and errors of one kind in a window. A failure that meets thousands of objects says the same of each."""


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {
        name: value
        for name, value in record.__dict__.items()
        if name not in _STANDARD and isinstance(value, str | int | float | bool)
    }


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class SpanFields(logging.Filter):
    """Adds the fields of the span that a record was written in: trace id, namespace, object, uid."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass; what it says itself stays."""
        for name, value in tracing.fields().items():
            record.__dict__.setdefault(name, value)
        return True


class BriefLibraryErrors(logging.Filter):
    """Reduces tracebacks of Kopf's own machinery to the error: the API server was away, which is no fault in the code.

    What handlers raise (logger `kopf.objects`) keeps its traceback. Below level `debug` nothing else of Kopf is shown:
    it logs each attempt of a request, and the operator itself says once what is wrong and what follows.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and record.name.startswith("kopf.") and record.name != _HANDLERS:
            record.error = f"{type(error).__name__}: {error}"
            record.exc_info = record.exc_text = None
        return True


class RateLimit(logging.Filter):
    """Lets through so many warnings and errors of one kind a minute; the next one after that says how many it left out.

    A kind is a logger and a message before its values are filled in.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        """Let everything pass so far; the clock gives seconds."""
        super().__init__()
        self._clock = clock
        self._windows: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record passes."""
        if record.levelno < logging.WARNING:
            return True
        kind, now = (record.name, str(record.msg)), self._clock()
        began, count = self._windows.get(kind, (now, 0))
        if now - began >= _WINDOW_SECONDS:
            if count > _MOST_IN_WINDOW:
                record.left_out = count - _MOST_IN_WINDOW
            began, count = now, 0
        self._windows[kind] = began, count + 1
        return count < _MOST_IN_WINDOW


class TextFormatter(logging.Formatter):
    """`time level logger message field=value ...`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, and a traceback below it if there is one."""
        fields = "".join(f" {name}={value!r}" for name, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname:<7} {record.name} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a JSON object."""
        entry = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure(log_format: Literal["text", "json"], level: str = "info") -> None:
    """Send all logs of the process to standard error.

    Args:
        log_format: for people, or for machines.
        level: of our own loggers; what libraries say below `info` is never of use here.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(RateLimit())
    handler.addFilter(BriefLibraryErrors())
    handler.addFilter(SpanFields())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("podlink").setLevel(level.upper())
    if level != "debug":
        logging.getLogger(_KOPF).setLevel(logging.CRITICAL)
        logging.getLogger(_HANDLERS).setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
