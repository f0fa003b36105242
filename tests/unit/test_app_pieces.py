"""The pieces around the rules, with Redis and the API server in memory: what is written, how often, and after failures.

That the whole works on real servers is for the tests of the cluster; here are the moments that are hard to meet there.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from podlink.cluster.client import ApiError, Cluster
from podlink.cluster.events import EventRecorder, ObjectReference
from podlink.controller.intake import Intake
from podlink.controller.reconciler import Reconciler
from podlink.controller.state_writer import StateWriter
from podlink.domain.errors import RedisUnavailable
from podlink.domain.inventory import Inventory
from podlink.domain.registry import PodLinks
from podlink.domain.workloads import Pod
from podlink.metrics import Metrics
from sandbox.processes import until_async
from unit.builders import NS, SVC, make_pod, make_workload, podlink
from unit.world import OTHERS, ApiServer, Redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from podlink.controller.monitor import RedisMonitor
    from podlink.domain.podlinks import PodLink, Status
    from podlink.store.aio.executor import StatefulExecutor
    from podlink.store.operations import Operation

PATIENCE_SECONDS = 10


class FakeRedis:
    """An executor and a monitor in one: one link, and the states of pods as they were written."""

    def __init__(self) -> None:
        self.link = Redis()
        self.states: list[tuple[object, ...]] = []
        self.pipelines = 0
        self.asked = asyncio.Event()
        self.available = asyncio.Event()
        self.available.set()
        self.down = False

    def report(self, error: Exception) -> None:
        self.available.clear()

    def comes_back(self) -> None:
        self.down = False
        self.available.set()

    async def run_many(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        self.asked.set()
        await asyncio.sleep(0)
        self.pipelines += 1
        if self.down:
            return [RedisUnavailable("connection refused") for _ in operations]
        return [self._run(operation) for operation in operations]

    def _run(self, operation: Operation[Any]) -> Any:
        link, record, args = self.link, self.link.record(), operation.args
        reads = {"get_linked_pod": record.pod_id, "link_ttl": record.ttl_ms, "listed_pod": record.listed}
        writes: dict[str, Callable[[], None]] = {
            "set_linked_pod": lambda: link.set(int(args[1]), int(args[2]), "operator"),
            "try_set_linked_pod": lambda: link.try_set(
                int(args[1]), int(args[2]), None if args[3] == "" else int(args[3]), "operator"
            ),
            "set_linked_pod_if_absent": lambda: link.set_if_absent(int(args[1]), int(args[2]), "operator"),
            "compute_linked_pod_if_absent": lambda: link.compute_if_absent(int(args[1]), "operator"),
            "remove_linked_pod_with_id": lambda: link.remove(int(args[1]), int(args[2])),
            "set_service_state": lambda: self.states.append(args),
            "set_workload_state": lambda: self.states.append(args),
        }
        return reads[operation.name] if operation.name in reads else writes[operation.name]()


class FakeCluster:
    """The API server's side of `Cluster`; refuses with these statuses first."""

    def __init__(self) -> None:
        self.api = ApiServer()
        self.refusals: list[int] = []
        self.events: list[dict[str, Any]] = []

    def _refuse(self, link: PodLink | None = None) -> None:
        if self.refusals:
            raise ApiError(self.refusals.pop(0), "refused")
        if link is not None and link.name not in self.api.objects:
            raise ApiError(404, "not found")

    async def patch_status(self, link: PodLink, status: Mapping[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        self._refuse(link)
        self.api.patch_status(link.name, dict(status))
        return self.api.body(link.name)

    async def patch_finalizers(self, link: PodLink, finalizers: Sequence[str]) -> dict[str, Any]:
        await asyncio.sleep(0)
        self._refuse(link)
        return self.api.set_finalizers(link.name, list(finalizers))

    async def create_event(self, namespace: str, event: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        self._refuse()
        self.events.append(event)


class Pieces:
    """An operator without its watches: tests tell it what happened."""

    def __init__(self) -> None:
        self.redis, self.cluster, self.metrics = FakeRedis(), FakeCluster(), Metrics()
        self.inventory, self.links = Inventory(), PodLinks()
        executor, monitor = cast("StatefulExecutor", self.redis), cast("RedisMonitor", self.redis)
        cluster = cast("Cluster", self.cluster)
        self.recorder = EventRecorder(cluster, on_dropped=self.metrics.dropped_events.inc)
        self.reconciler = Reconciler(
            self.links,
            self.inventory,
            executor,
            cluster,
            monitor,
            self.recorder,
            self.metrics,
            is_ready=lambda _: True,
        )
        self.writer = StateWriter(
            self.inventory,
            executor,
            monitor,
            self.metrics,
            on_written=lambda before, after: self.reconciler.look_at(self.links.concerned(before, after)),
        )
        self.relists = 0
        self.intake = Intake(
            self.inventory, self.links, self.writer, self.reconciler, self.metrics, on_relist=self._relist
        )

    def _relist(self, _: str) -> None:
        self.relists += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        work = [asyncio.create_task(each) for each in (self.reconciler.run(), self.writer.run(), self.recorder.run())]
        try:
            yield
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)

    def lobby(self, *ready: int, version: int = 1) -> None:
        """The service has exactly these pods, all Ready."""
        pods = [make_pod(pod_id, version=version, owner=None) for pod_id in ready]
        self.writer.mark(self.inventory.replace(pods, Pod, version, None))
        self.redis.link.routable = list(ready)

    def create(self, name: str, **spec: Any) -> None:
        self.cluster.api.create(name, spec)
        self.changed(name)

    def changed(self, name: str) -> None:
        """The watch tells of a PodLink."""
        self.intake.podlink("MODIFIED", self.cluster.api.body(name))

    def status(self, name: str) -> Status:
        return self.cluster.api.read(name).status

    async def reason(self, name: str, reason: str) -> Status:
        await until_async(
            lambda: self.status(name).reason == reason, timeout=PATIENCE_SECONDS, what=f"{name} to be {reason}"
        )
        return self.status(name)


@pytest.fixture
async def pieces() -> AsyncIterator[Pieces]:
    made = Pieces()
    made.lobby(0, 1, 2)
    async with made.running():
        yield made


async def test_a_look_at_a_link_that_is_right_writes_nothing(pieces: Pieces) -> None:
    pieces.create("a", podId=1)
    await pieces.reason("a", "Linked")
    assert pieces.cluster.api.patches == 1, "one report"
    calls = pieces.redis.pipelines
    pieces.reconciler.look_at([(NS, "a")])
    await until_async(lambda: pieces.redis.pipelines > calls, timeout=PATIENCE_SECONDS, what="another look")
    assert pieces.cluster.api.patches == 1


async def test_the_finalizer_is_there_before_the_link(pieces: Pieces) -> None:
    pieces.cluster.api.create("a", {"podId": 1})
    pieces.cluster.api.objects["a"]["metadata"]["finalizers"] = ["somebody.else/guard"]
    pieces.cluster.refusals = [500]
    pieces.changed("a")
    await until_async(lambda: not pieces.cluster.refusals, timeout=PATIENCE_SECONDS, what="a patch")
    assert pieces.redis.link.pod is None
    await pieces.reason("a", "Linked")
    assert pieces.cluster.api.read("a").finalizers == ("somebody.else/guard", "podlink.io/release")


async def test_a_deleted_podlink_goes_with_its_link(pieces: Pieces) -> None:
    pieces.create("a", podId=1)
    await pieces.reason("a", "Linked")
    pieces.cluster.api.delete("a")
    pieces.changed("a")
    await until_async(lambda: not pieces.cluster.api.objects, timeout=PATIENCE_SECONDS, what="the object to go")
    assert pieces.redis.link.pod is None
    assert len(pieces.links) == 0


async def test_if_absent_makes_a_link_of_its_own_when_the_adopted_one_is_gone_with_its_pod(pieces: Pieces) -> None:
    pieces.redis.link.set(1, -1, OTHERS)
    pieces.create("a", policy="IfAbsent")
    assert (await pieces.reason("a", "AlreadyLinked")).owned is False
    pieces.redis.link.wipe()
    pieces.lobby(0, version=2)
    status = await pieces.reason("a", "Linked")
    assert (status.pod_id, status.previous_pod_id, status.owned) == (0, 1, True)


async def test_if_absent_still_owns_a_link_that_was_relinked(pieces: Pieces) -> None:
    pieces.lobby(1, version=2)
    pieces.create("a", policy="IfAbsent", onPodLoss="Relink")
    assert (await pieces.reason("a", "Linked")).pod_id == 1
    pieces.lobby(2, version=3)
    await until_async(lambda: pieces.status("a").pod_id == 2, timeout=PATIENCE_SECONDS, what="the link to move")
    assert (pieces.status("a").owned, pieces.status("a").previous_pod_id) == (True, 1)


async def test_the_older_podlink_has_its_link_after_the_younger_one_let_go(pieces: Pieces) -> None:
    """Also when it found the younger one's link in its place, just before that was taken away."""
    pieces.create("b", podId=1)
    await pieces.reason("b", "Linked")
    pieces.create("a", podId=1)  # of the same second, and first by its uid
    await pieces.reason("b", "DuplicatePodLink")
    await until_async(lambda: pieces.redis.link.pod == 1, timeout=PATIENCE_SECONDS, what="the link of the older one")
    assert (await pieces.reason("a", pieces.status("a").reason)).owned


async def test_an_object_that_is_gone_is_forgotten(pieces: Pieces) -> None:
    pieces.create("a", podId=7)
    await pieces.reason("a", "PodNotFound")
    del pieces.cluster.api.objects["a"]
    pieces.lobby(0, 1, 2, 7, version=2)
    await until_async(lambda: len(pieces.links) == 0, timeout=PATIENCE_SECONDS, what="the object to be forgotten")


@pytest.mark.parametrize("status", [409, 500, 503, 0])
async def test_a_report_that_was_refused_is_made_again(pieces: Pieces, status: int) -> None:
    pieces.cluster.refusals = [status]
    pieces.create("a", podId=1)
    assert (await pieces.reason("a", "AlreadyLinked")).owned, "it was written before the report was refused"


async def test_an_outage_is_reported_where_somebody_waits_and_nowhere_else(pieces: Pieces) -> None:
    pieces.create("steady", podId=1)
    await pieces.reason("steady", "Linked")
    before = pieces.cluster.api.patches
    pieces.redis.down = True
    pieces.redis.available.clear()
    pieces.reconciler.look_at([(NS, "steady")])
    pieces.create("new", podId=1, uid="player-43")
    assert (await pieces.reason("new", "RedisUnavailable")).phase == "Pending"
    pieces.reconciler.look_at([(NS, "new"), (NS, "steady")])
    pieces.redis.comes_back()
    await until_async(
        lambda: pieces.status("new").phase == "Linked", timeout=PATIENCE_SECONDS, what="the link after the outage"
    )
    assert pieces.status("steady").reason == "Linked"
    assert pieces.cluster.api.patches == before + 2, "the outage, and the link"


async def test_an_outage_in_the_midst_of_it_is_made_up_for(pieces: Pieces) -> None:
    pieces.redis.down = True
    pieces.create("a", podId=1)
    await pieces.reason("a", "RedisUnavailable")
    pieces.redis.comes_back()
    await pieces.reason("a", "Linked")


async def test_events_tell_of_transitions(pieces: Pieces) -> None:
    pieces.create("a", podId=7)
    await pieces.reason("a", "PodNotFound")
    pieces.lobby(0, 1, 2, 7, version=2)
    await pieces.reason("a", "Linked")
    events = pieces.cluster.events
    await until_async(lambda: len(events) == 2, timeout=PATIENCE_SECONDS, what="two Events")
    assert [(event["type"], event["reason"]) for event in events] == [("Warning", "PodNotFound"), ("Normal", "Linked")]
    assert events[1]["note"] == "uid player-42 is linked to pod 7 (lobby-7)"
    assert events[1]["regarding"]["name"] == "a"


async def test_a_burst_of_events_is_one_write_a_pod() -> None:
    pieces = Pieces()
    for version in range(1, 50):
        pieces.intake.pod("MODIFIED", pod_body("lobby-0", version))
        pieces.intake.pod("MODIFIED", pod_body("lobby-1", version))
    await pieces.writer.flush()
    assert sorted(pieces.redis.states) == [(0, "NotReady", "49"), (1, "NotReady", "49")]
    assert pieces.redis.pipelines == 1
    await pieces.writer.flush()
    assert len(pieces.redis.states) == 2


async def test_the_write_of_a_burst_is_linked_to_each_of_its_events(exported: InMemorySpanExporter) -> None:
    pieces = Pieces()
    pieces.intake.pod("ADDED", pod_body("lobby-0", 1))
    pieces.redis.down = True
    with pytest.raises(RedisUnavailable):
        await pieces.writer.flush()
    pieces.intake.pod("ADDED", pod_body("lobby-1", 2))
    exported.clear()
    for version in range(3, 100):
        pieces.intake.pod("MODIFIED", pod_body("lobby-1", version))
    pieces.redis.comes_back()
    await pieces.writer.flush()

    *events, write = (cast("Any", span) for span in exported.get_finished_spans())
    assert write.name == "write"
    linked = {link.context.trace_id for link in write.links}
    # Two came before these. An outage of hours has events without number, so that the last are left out.
    assert linked >= {event.context.trace_id for event in events[:14]}
    assert len(linked) == 16


async def test_what_an_outage_kept_from_being_written_is_written_afterwards() -> None:
    pieces = Pieces()
    pieces.intake.pod("ADDED", pod_body("lobby-0", 1))
    pieces.redis.down = True
    with pytest.raises(RedisUnavailable):
        await pieces.writer.flush()
    pieces.intake.pod("MODIFIED", pod_body("lobby-0", 2, deletionTimestamp="2024-05-01T12:00:00Z"))
    pieces.redis.comes_back()
    await pieces.writer.flush()
    assert pieces.redis.states == [(0, "Terminating", "2")]


async def test_what_a_cancelled_write_had_left_is_written_by_the_next() -> None:
    pieces = Pieces()
    pieces.intake.pod("ADDED", pod_body("lobby-0", 1))
    cancelled = asyncio.create_task(pieces.writer.flush())
    await pieces.redis.asked.wait()
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert pieces.redis.states == []
    await pieces.writer.flush()
    assert pieces.redis.states == [(0, "NotReady", "1")]


async def test_the_end_of_a_pod_is_written_with_the_version_of_its_end() -> None:
    pieces = Pieces()
    pieces.intake.pod("ADDED", pod_body("lobby-0", 5))
    await pieces.writer.flush()
    pieces.intake.pod("DELETED", pod_body("lobby-0", 9))
    await pieces.writer.flush()
    assert pieces.redis.states == [(0, "NotReady", "5"), (0, "", "9")]


async def test_a_service_that_moved_leaves_nothing_behind() -> None:
    pieces = Pieces()
    pieces.intake.pod("ADDED", pod_body("lobby-0", 5))
    await pieces.writer.flush()
    pieces.redis.states.clear()
    pieces.intake.pod("MODIFIED", pod_body("lobby-0", 6, labels={"podlink.io/service": "chat"}))
    await pieces.writer.flush()
    assert sorted(pieces.redis.states) == [(0, "", "6"), (0, "NotReady", "6")]


async def test_a_workload_is_written_and_removed() -> None:
    pieces = Pieces()
    pieces.writer.mark(pieces.inventory.observe(make_workload(version=5)))
    await pieces.writer.flush()
    pieces.writer.mark(pieces.inventory.forget("set-uid", 7))
    await pieces.writer.flush()
    assert pieces.redis.states == [("", "Available", "5"), ("", "", "7")]


def pod_body(name: str, version: int, **metadata: Any) -> dict[str, Any]:
    labels = {"podlink.io/service": SVC} | metadata.pop("labels", {})
    fixed = {"namespace": NS, "name": name, "uid": f"{name}-uid", "resourceVersion": str(version), "labels": labels}
    return {"metadata": fixed | metadata, "status": {"phase": "Running"}}


def test_a_pod_without_an_id_is_told_of_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    pieces = Pieces()
    pieces.intake.pod("ADDED", pod_body("lobby-0", 1))
    pieces.intake.pod("MODIFIED", pod_body("lobby-0", 2, labels={"podlink.io/pod-id": "zero"}))
    assert "set label podlink.io/pod-id to an integer" in caplog.text
    assert not pieces.inventory.view(NS, SVC).exists, "what was known of it is no longer true"
    assert pieces.metrics.registry.get_sample_value("podlink_unidentified_objects_total", {"kind": "Pod"}) == 1


def test_a_podlink_that_cannot_be_read_is_told_of_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    pieces = Pieces()
    pieces.create("a", podId="one")
    assert "PodLink games/a is left out" in caplog.text
    assert "podId" in caplog.text
    assert len(pieces.links) == 0


def test_a_list_by_the_watch_asks_for_a_sweep() -> None:
    pieces = Pieces()
    pieces.intake.pod("ADDED", pod_body("lobby-0", 1))
    assert pieces.relists == 0
    pieces.intake.pod(None, pod_body("lobby-1", 1))
    assert pieces.relists == 1
    assert pieces.metrics.registry.get_sample_value("podlink_watch_events_total", {"kind": "Pod"}) == 2


def test_the_end_of_a_podlink_wakes_the_next() -> None:
    pieces = Pieces()
    pieces.create("a", podId=1)
    pieces.create("b", podId=1)
    body = pieces.cluster.api.body("a")
    body["metadata"]["resourceVersion"] = "99"
    pieces.intake.podlink("DELETED", body)
    link = pieces.links.get((NS, "b"))
    assert link is not None
    assert pieces.links.holder(link) is None


REGARDING = ObjectReference.of_podlink(podlink(1))


@pytest.mark.parametrize(
    ("refusal", "lost"), [(403, 1), (409, 0)], ids=["forbidden", "it was sent before, and the answer was lost"]
)
async def test_an_event_that_is_refused_does_not_stop_the_next(refusal: int, lost: int) -> None:
    pieces = Pieces()
    pieces.cluster.refusals = [refusal]
    async with pieces.running():
        for note in ("first", "second"):
            pieces.recorder.record(REGARDING, "Normal", "Linked", note, action="Reconcile")
        await until_async(lambda: pieces.cluster.events, timeout=PATIENCE_SECONDS, what="an Event")
    assert [event["note"] for event in pieces.cluster.events] == ["second"]
    assert dropped(pieces) == lost


async def test_the_end_sends_each_event_once() -> None:
    pieces = Pieces()
    for number in range(20):
        pieces.recorder.record(REGARDING, "Normal", "Linked", str(number), action="Reconcile")
    async with pieces.running():
        await asyncio.sleep(0)  # some are under way
        await pieces.recorder.drain()
    assert [event["note"] for event in pieces.cluster.events] == [str(number) for number in range(20)]
    assert len({event["metadata"]["name"] for event in pieces.cluster.events}) == 20


async def test_when_events_pile_up_the_oldest_are_dropped_and_counted() -> None:
    pieces = Pieces()
    for number in range(10_003):
        pieces.recorder.record(REGARDING, "Normal", "Linked", str(number), action="Reconcile")
    assert dropped(pieces) == 3
    async with pieces.running():
        await until_async(lambda: pieces.cluster.events, timeout=PATIENCE_SECONDS, what="an Event")
    assert pieces.cluster.events[0]["note"] == "3"


async def test_an_event_fits_into_what_the_api_server_takes() -> None:
    pieces = Pieces()
    name = "l" * 253
    pieces.recorder.record(
        msgspec.structs.replace(REGARDING, name=name), "Warning", "PodLost", "n" * 5000, action="Reconcile"
    )
    async with pieces.running():
        await until_async(lambda: pieces.cluster.events, timeout=PATIENCE_SECONDS, what="an Event")
    (event,) = pieces.cluster.events
    assert len(event["note"]) == 1024
    assert len(event["metadata"]["name"]) <= 253
    assert event["regarding"]["name"] == name
    assert (event["type"], event["reason"], event["action"]) == ("Warning", "PodLost", "Reconcile")


def dropped(pieces: Pieces) -> float | None:
    return pieces.metrics.registry.get_sample_value("podlink_dropped_kubernetes_events_total")
