"""Structured logs: every record is a message and named fields, as text for people or as JSON for machines."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

from podlink import tracing

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

_NOISY = {
    # Our own thread runs Kopf; that it gets no signals is intended.
    "kopf._core.reactor.running": logging.ERROR,
    # One line for each object and event.
    "kopf.objects": logging.WARNING,
    "kopf.activities": logging.WARNING,
    # Two lines a minute, at each look at the credentials.
    "kopf._core.engines.activities": logging.WARNING,
    "aiohttp.access": logging.WARNING,
}


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

    What handlers raise (logger `kopf.objects`) keeps its traceback.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and record.name.startswith("kopf.") and record.name != "kopf.objects":
            record.error = f"{type(error).__name__}: {error}"
            record.exc_info = record.exc_text = None
        return True


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
    handler.addFilter(BriefLibraryErrors())
    handler.addFilter(SpanFields())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("podlink").setLevel(level.upper())
    for name, least in _NOISY.items():
        logging.getLogger(name).setLevel(least)
