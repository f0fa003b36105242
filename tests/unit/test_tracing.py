"""Which spans belong to which trace, and what the log says of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest
from opentelemetry.trace import StatusCode

from podlink import StatefulExecutor, tracing
from podlink.domain.errors import ScriptError
from podlink.store import operations
from podlink.store.aio.traced import TracedExecutor

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


def spans(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def trace_of(span: ReadableSpan) -> int:
    return cast("Any", span.context).trace_id


def caused(name: str) -> tracing.Cause:
    """An event, over by now, that asked for work."""
    with tracing.span(name, about={"object": f"Pod/{name}"}):
        cause = tracing.here()
    assert cause is not None
    return cause


@pytest.mark.parametrize("exports", [True, False], ids=["exported", "for the log alone"])
def test_work_for_one_event_goes_on_with_its_trace(exports: bool, request: pytest.FixtureRequest) -> None:
    if exports:
        request.getfixturevalue("exported")
    event = caused("event")
    with tracing.span("reconcile", event, about={"namespace": "games", "object": "PodLink/a", "uid": "u"}):
        assert tracing.fields() == {
            "namespace": "games",
            "object": "PodLink/a",
            "uid": "u",
            "trace_id": event.trace_id,
        }
    assert tracing.fields() == {}
    assert caused("other").trace_id != event.trace_id


def test_the_span_of_the_work_is_a_child_of_the_event(exported: InMemorySpanExporter) -> None:
    with tracing.span("reconcile", caused("event")), tracing.step("redis"):
        pass
    made = spans(exported)
    assert cast("Any", made["reconcile"].parent).span_id == cast("Any", made["event"].context).span_id
    assert cast("Any", made["redis"].parent).span_id == cast("Any", made["reconcile"].context).span_id
    assert len({trace_of(span) for span in made.values()}) == 1


def test_work_for_many_events_is_a_trace_of_its_own_that_links_to_theirs(exported: InMemorySpanExporter) -> None:
    events = [caused("first"), caused("second")]
    with tracing.span("write", *events):
        inside = tracing.here()
    made = spans(exported)
    assert inside is not None
    assert inside.trace_id not in {event.trace_id for event in events}
    assert made["write"].parent is None
    assert {f"{link.context.trace_id:032x}" for link in made["write"].links} == {event.trace_id for event in events}


def test_a_step_outside_of_any_span_is_not_exported(exported: InMemorySpanExporter) -> None:
    with tracing.step("redis"):
        pass
    assert spans(exported) == {}


async def test_tasks_that_run_at_the_same_time_have_their_own_spans(exported: InMemorySpanExporter) -> None:
    async def work(name: str) -> str:
        with tracing.span(name):
            await asyncio.sleep(0)
            return tracing.fields()["trace_id"]

    first, second = await asyncio.gather(work("first"), work("second"))
    assert first != second
    assert {f"{trace_of(span):032x}" for span in exported.get_finished_spans()} == {first, second}


async def test_a_failed_call_is_a_failed_span_and_one_that_went_well_is_none(
    exported: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies: list[Any] = [1]

    async def answer(*_: object) -> list[Any]:
        return replies

    monkeypatch.setattr(StatefulExecutor, "run_many", answer)
    async with TracedExecutor.from_url("redis://127.0.0.1:1") as executor:
        for name in ("fine", "refused"):
            with tracing.span(name):
                await executor.run_many([operations.get_linked_pod("games", "u", "lobby")])
            replies = [1, ScriptError("NOPERM")]
    calls = [span for span in exported.get_finished_spans() if span.name == "redis"]
    assert [span.status.status_code for span in calls] == [StatusCode.UNSET, StatusCode.ERROR]
    assert calls[1].status.description == "NOPERM"
    attributes = cast("Any", calls[0].attributes)
    assert attributes["db.operation.name"] == "get_linked_pod"
    assert "u" not in attributes.values()
