"""One event, followed through the log and through the spans that a collector receives."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from cluster.harness import Kube, Wire, eventually
from cluster.operators import Operator, running_operator, start_operator
from sandbox.processes import free_port, until

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
    with Kube(cluster, namespace) as kube, running_operator(cluster, *flags, **exporter) as operator:
        await_pod(kube, redis_server)
        created = kube.link("player", "player-uid", podId=0)
        (entry,) = until(lambda: linked(operator, namespace, "player"), 20, "the log to say that it is linked")
        kube.clear()
        eventually(lambda: kube.list("podlinks"), [])

    about = {"namespace": namespace, "object": "PodLink/player", "uid": "player-uid"}
    assert entry.items() >= {**about, "object_uid": created["metadata"]["uid"]}.items()
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

    pods = {span.trace for span in collector.spans if span.attributes.get("object") == "Pod/lobby-0"}
    # Of several events that one write is for, it has links instead of a parent.
    writes = {cause for span in collector.spans if span.name == "write" for cause in (span.trace, *span.links)}
    assert pods & writes, "a pod's event leads to the write of its state"


def test_log_lines_have_a_trace_id_without_any_collector(
    cluster: Cluster, redis_server: RedisServer, namespace: str
) -> None:
    with (
        Kube(cluster, namespace) as kube,
        running_operator(cluster, "--redis-url", redis_server.url, "--namespace", namespace) as operator,
    ):
        await_pod(kube, redis_server)
        for name in ("first", "second"):
            kube.link(name, podId=0)
        first, second = (
            until(lambda name=name: linked(operator, namespace, name), 20, f"{name} to be linked")[0]
            for name in ("first", "second")
        )
        kube.clear()
    assert len(first["trace_id"]) == len(second["trace_id"]) == 32
    assert first["trace_id"] != second["trace_id"]


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
        assert not operator.faults()
