"""One event, followed through the log and through the spans that a collector receives."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from cluster.harness import Kube, Wire
from cluster.operators import Operator, running_operator, start_operator
from sandbox.processes import eventually, free_port, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.cluster import Cluster
    from sandbox.redis_servers import RedisServer


class Span(NamedTuple):
    trace: str
    name: str
    id: str
    parent: str
    attributes: dict[str, Any]
    links: list[str]


class Collector:
    """Takes spans over OTLP/HTTP, as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Say nothing of each request."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            named = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.services.add(named["service.name"])
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {each.key: each.value.string_value for each in span.attributes}
                    ids = span.span_id.hex(), span.parent_span_id.hex()
                    links = [link.trace_id.hex() for link in span.links]
                    self.spans.append(Span(span.trace_id.hex(), span.name, *ids, attributes, links))

    def roots(self, trace: str) -> list[str]:
        """The names of a trace's spans that are part of no other."""
        return [span.name for span in self.spans if span.trace == trace and not span.parent]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


def await_pod(kube: Kube, redis_server: RedisServer) -> None:
    """Have a Ready pod that the operator knows: else its event would be what a PodLink gets linked by."""
    kube.stateful_set("lobby", 1)
    with redis_server.client() as client:
        eventually(Wire(client, kube.namespace).service, ({"0": "Ready"}, "Available"))


def linked(operator: Operator, namespace: str, name: str) -> list[dict[str, Any]]:
    """What was logged of a PodLink that got linked."""
    told = f"PodLink {namespace}/{name} is Linked"
    return [entry for entry in operator.log() if entry["message"].startswith(told)]


def test_spans_of_an_event_share_the_trace_id_of_its_log_lines(
    cluster: Cluster,
    redis_server: RedisServer,
    namespace: str,
    collector: Collector,
) -> None:
    flags = ["--redis-url", redis_server.url, "--namespace", namespace, "--tracing"]
    exporter = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    numbers = itertools.count()

    def linked_by_its_event() -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Create a PodLink; return it and its line in the log, or None if a sweep was quicker than its event."""
        name = f"player-{next(numbers)}"
        created = kube.link(name, f"{name}-uid", podId=0)
        (entry,) = until(lambda: linked(operator, namespace, name), 60, f"the log to say that {name} is linked")
        roots = until(lambda: collector.roots(entry["trace_id"]), 60, "the beginning of its trace")
        return (created, entry) if roots == ["event"] else None

    def pods_were_written() -> bool:
        pods = {span.trace for span in collector.spans if span.attributes.get("object", "").startswith("Pod/arena-")}
        writes = (span for span in collector.spans if span.name == "write")
        # Of several events that one write is for, it has links instead of a parent.
        return any(not pods.isdisjoint({write.trace, *write.links}) for write in writes)

    with Kube(cluster, namespace) as kube, running_operator(cluster, *flags, **exporter) as operator:
        await_pod(kube, redis_server)
        created, entry = until(linked_by_its_event, 60, "a PodLink whose event is quicker than the sweeps at the start")
        kube.stateful_set("arena", 3)
        until(pods_were_written, 60, "an event of a pod to lead to the write of its state")
        kube.clear()
        eventually(lambda: kube.list("podlinks"), [])

    spec, metadata = created["spec"], created["metadata"]
    about = {"namespace": namespace, "object": f"PodLink/{metadata['name']}", "uid": spec["uid"]}
    assert entry.items() >= {**about, "object_uid": metadata["uid"]}.items()
    spans = [span for span in collector.spans if span.trace == entry["trace_id"]]
    (event,) = (span for span in spans if span.name == "event")
    reconciles = [span for span in spans if span.name == "reconcile"]
    assert event.attributes.items() >= about.items()
    assert {span.parent for span in reconciles} == {event.id}
    inner = {span.name for span in spans if span.parent in {each.id for each in reconciles}}
    assert inner == {"redis", "kubernetes"}
    (write,) = (span for span in spans if "try_set_linked_pod" in span.attributes.get("db.operation.name", ""))
    assert write.attributes["db.system.name"] == "redis"
    assert collector.services == {"podlink"}


def test_log_lines_have_a_trace_id_without_any_collector(
    cluster: Cluster, redis_server: RedisServer, namespace: str
) -> None:
    with (
        Kube(cluster, namespace) as kube,
        running_operator(cluster, "--redis-url", redis_server.url, "--namespace", namespace) as operator,
    ):
        await_pod(kube, redis_server)
        traces = set()
        for name in ("first", "second"):
            # One after the other, or a sweep that finds both has one trace for them.
            kube.link(name, podId=0)
            (entry,) = until(lambda name=name: linked(operator, namespace, name), 60, f"{name} to be linked")
            traces.add(entry["trace_id"])
        kube.clear()
    assert [len(trace) for trace in traces] == [32, 32]


@pytest.mark.parametrize("listens", [False, True], ids=["refuses", "hangs"])
def test_a_collector_that_is_away_holds_nothing_up(
    cluster: Cluster, redis_server: RedisServer, namespace: str, listens: bool
) -> None:
    # Where nobody accepts connections, whoever connects waits for an answer.
    listener = socket.create_server(("127.0.0.1", 0)) if listens else None
    nowhere = f"http://127.0.0.1:{listener.getsockname()[1] if listener else free_port()}"
    flags = ["--redis-url", redis_server.url, "--namespace", namespace, "--tracing"]
    with (
        listener or contextlib.nullcontext(),
        Kube(cluster, namespace) as kube,
        start_operator(cluster, *flags, OTEL_EXPORTER_OTLP_ENDPOINT=nowhere) as operator,
    ):
        operator.await_start()
        operator.await_ready()
        kube.stateful_set("lobby", 1)
        kube.link("player", podId=0)
        eventually(lambda: kube.report("player"), ("Linked", "Linked", 0))
        kube.unlink("player")
        assert operator.process.stop(grace_seconds=20) == 0
        # The exporter says that the collector is away, which is what is tested here.
        assert not [line for line in operator.faults() if "opentelemetry.exporter" not in line]
