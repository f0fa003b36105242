"""Connects work with the event that caused it: by a trace id in the log, and optionally by OpenTelemetry spans.

Every piece of work is a span. A span adds fields to the log lines that are written inside it. One of them is the
trace id, which is the same for all work that one event caused. If OpenTelemetry is enabled (`enable`), the same spans
are also exported with the same ids.
"""

import os
import secrets
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from podlink.domain.errors import PodLinkError
from podlink.extras import needs

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

NAME: Final = "podlink"

CLOSE_SECONDS: Final = 3.0
"""How long to wait for the last spans to be sent, at the end."""


class TracingUnavailable(PodLinkError):  # noqa: N818 - named for what it tells the user
    """Spans cannot be exported. The text says why and what to do."""


class Cause(NamedTuple):
    """The span that asked for some work, so that another task can continue its trace."""

    trace_id: str
    context: Any = None
    """The context of OpenTelemetry. None if it is not enabled."""


class _Here(NamedTuple):
    cause: Cause
    fields: Mapping[str, str]


_here: ContextVar[_Here | None] = ContextVar("podlink_span", default=None)
_tracer: "Tracer | None" = None


def enable(version: str) -> Callable[[], None]:
    """Export spans by OTLP over HTTP from now on. The standard `OTEL_...` variables name the collector.

    Returns:
        A function to call at the end. It sends the remaining spans, and waits at most `CLOSE_SECONDS`.

    Raises:
        ExtraMissing: the packages of the extra `tracing` are not installed.
        TracingUnavailable: the variables cannot be used.
    """
    with needs("tracing", "--tracing"):
        from opentelemetry import trace  # noqa: PLC0415 - optional
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - optional
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource  # noqa: PLC0415 - optional
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - optional
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - optional
    named = {SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME") or NAME, SERVICE_VERSION: version}
    try:
        provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ValueError as error:
        raise TracingUnavailable(f"--tracing cannot be set up by the OTEL_... variables: {error}") from error
    use(trace.get_tracer(NAME, version, tracer_provider=provider))

    def close() -> None:
        # The exporter has no time limit for a collector that does not answer. So wait for it in a thread.
        closing = threading.Thread(target=provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    return close


def use(tracer: "Tracer | None") -> None:
    """Create spans with this tracer from now on. With None, only create ids for the log."""
    global _tracer  # noqa: PLW0603 - one for the process, like OpenTelemetry's own
    _tracer = tracer


def here() -> Cause | None:
    """Return the span that this code runs in, or None."""
    current = _here.get()
    return current.cause if current else None


def fields() -> Mapping[str, str]:
    """Return the fields for log lines: the trace id and the object of the current span."""
    current = _here.get()
    return current.fields if current else {}


@contextmanager
def span(
    name: str, *causes: Cause | None, about: Mapping[str, str] | None = None, **attributes: str | int
) -> Iterator[None]:
    """Run the block as one span of a trace.

    Args:
        name: name of the span, from a small set.
        causes: the spans that asked for this work in another task. With one cause, this span continues its trace. With
            several, it starts a trace of its own, with links to theirs. With none, it is a child of the current span.
        about: fields for the log and the span: `namespace`, `object`, `uid`.
        attributes: fields for the span only.
    """
    known = [cause for cause in causes if cause is not None]
    parent = known[0] if len(known) == 1 else None if known else here()
    about = about or {}
    with _exported(name, parent, known, {**about, **attributes}) as cause:
        token = _here.set(_Here(cause, {**about, "trace_id": cause.trace_id}))
        try:
            yield
        finally:
            _here.reset(token)


@contextmanager
def step(name: str, **attributes: str | int) -> Iterator["Span | None"]:
    """Run a call to a server as a child of the current span. Without a current span, this does nothing."""
    current = _here.get()
    if _tracer is None or current is None:
        yield None
        return
    with _tracer.start_as_current_span(name, context=current.cause.context, attributes=attributes) as made:
        yield made


def failed(made: "Span | None", error: BaseException) -> None:
    """Mark a step as failed if it ends without an exception."""
    if made is not None:
        from opentelemetry.trace import StatusCode  # noqa: PLC0415 - optional

        made.set_status(StatusCode.ERROR, str(error))


@contextmanager
def _exported(
    name: str, parent: Cause | None, causes: Sequence[Cause], attributes: Mapping[str, str | int]
) -> Generator[Cause]:
    if _tracer is None:
        yield parent or Cause(secrets.token_hex(16))
        return
    from opentelemetry import trace  # noqa: PLC0415 - optional
    from opentelemetry.context import Context  # noqa: PLC0415 - optional

    context = parent.context if parent and parent.context is not None else Context()
    others = (
        () if parent else [trace.Link(trace.get_current_span(cause.context).get_span_context()) for cause in causes]
    )
    with _tracer.start_as_current_span(name, context=context, links=others, attributes=attributes) as made:
        yield Cause(f"{made.get_span_context().trace_id:032x}", trace.set_span_in_context(made, Context()))
