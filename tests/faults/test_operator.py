"""The operator is killed, stays away, comes back: whatever happened meanwhile, cluster and Redis agree afterwards."""

from __future__ import annotations

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import redis

from cluster.harness import NO_LINK, Kube, Wire, disagreement, podlink
from cluster.operators import Operator, start_operator
from podlink import sync
from sandbox.processes import eventually, until

if TYPE_CHECKING:
    from pathlib import Path

    from faults.conftest import Start
    from sandbox.cluster import Cluster
    from sandbox.redis_servers import RedisServer

BURST = 200
KINDS: list[dict[str, Any]] = [{"podId": 1}, {}, {"policy": "IfAbsent"}, {"policy": "Set", "podId": 0}]


def kill(operator: Operator) -> None:
    operator.process.signal(signal.SIGKILL)
    operator.process.wait(10)


def test_an_operator_killed_in_a_burst_loses_no_link_and_leaves_none(
    cluster: Cluster, kube: Kube, wire: Wire, redis_server: RedisServer, start: Start
) -> None:
    flags = ["--redis-url", redis_server.url, "--namespace", kube.namespace]

    def burst() -> None:
        for number in range(BURST):
            kube.link(f"burst-{number}", **KINDS[number % len(KINDS)])

    with start_operator(cluster, *flags) as first, ThreadPoolExecutor() as pool:
        first.await_start()
        creation = pool.submit(burst)
        until(lambda: sum(map(int, wire.loads().values())) >= BURST / 4, 60, "a quarter of the links")
        kill(first)
        assert sum(map(int, wire.loads().values())) < BURST
        creation.result()

    with start_operator(cluster, *flags) as second:
        eventually(lambda: {kube.report(link["metadata"]["name"])[0] for link in kube.list("podlinks")}, {"Linked"})
        assert len(kube.list("podlinks")) == BURST
        eventually(lambda: disagreement(kube, wire), {})
        assert not second.faults(), second.faults()
        kill(second)

    kube.delete_all("podlinks")
    assert len(kube.list("podlinks")) == BURST
    with start():
        eventually(lambda: len(kube.list("podlinks")), 0, timeout=60)
        assert wire.keys() == {
            f"sf:{{{kube.namespace}:state:lobby}}": {"0": "Ready", "1": "Ready"},
            f"sf:{{{kube.namespace}:workload:lobby}}": "Available",
        }


def test_what_happened_while_no_operator_ran_is_made_up_for(kube: Kube, wire: Wire, start: Start) -> None:
    kube.stateful_set("arena", 2)
    with start():
        for name in ("stays", "deleted", "edited"):
            kube.link(name, podId=0)
            eventually(lambda name=name: kube.report(name), ("Linked", "Linked", 0))
        kube.link("in-arena", service="arena", podId=1, onPodLoss="Release")
        eventually(lambda: kube.report("in-arena"), ("Linked", "Linked", 1))
        eventually(lambda: disagreement(kube, wire), {})
    assert wire.states("arena") == {"0": "Ready", "1": "Ready"}

    kube.delete("podlinks", "deleted")
    kube.edit("edited", podId=1)
    kube.link("created", podId=0)
    kube.delete("statefulsets", "arena")
    kube.scale("lobby", 3)
    kube.stateful_set("hall", 1)
    eventually(lambda: kube.ready_replicas("lobby"), 3)
    eventually(lambda: len(kube.list("pods")), 4)

    with start():
        eventually(lambda: kube.get("podlinks", "deleted"), None)
        eventually(lambda: kube.report("edited"), ("Linked", "Linked", 1))
        eventually(lambda: kube.report("created"), ("Linked", "Linked", 0))
        eventually(lambda: kube.report("in-arena"), ("Released", "PodLost", None))
        eventually(lambda: disagreement(kube, wire), {})
        assert wire.link("deleted") == wire.link("in-arena", "arena") == NO_LINK
        assert wire.states() == {"0": "Ready", "1": "Ready", "2": "Ready"}
        assert wire.service("arena") == ({}, None)
        assert wire.service("hall") == ({"0": "Ready"}, "Available")


def test_a_replace_while_no_operator_runs_loses_no_finalizer(kube: Kube, wire: Wire, start: Start) -> None:
    """`kubectl replace`, and the option Replace of Argo CD, send a manifest that names no finalizer."""
    with start():
        kube.link("replaced", podId=1)
        eventually(lambda: kube.report("replaced"), ("Linked", "Linked", 1))

    kube.kubectl("replace", "-f", "-", input=json.dumps(podlink("replaced", podId=1)))
    guarded = kube.cluster.serves_policies()
    finalizers = (kube.get("podlinks", "replaced") or {})["metadata"].get("finalizers", [])
    assert finalizers == (["podlink.io/release"] if guarded else [])
    kube.delete("podlinks", "replaced")

    with start():
        eventually(lambda: kube.get("podlinks", "replaced"), None)
        # An API server without admission policies deletes the object at once, and nobody can know of its link.
        eventually(lambda: wire.link("replaced"), NO_LINK if guarded else ("1", "1"))


def test_pods_scaled_away_while_no_operator_ran_have_no_state(kube: Kube, wire: Wire, start: Start) -> None:
    with start():
        eventually(wire.states, {"0": "Ready", "1": "Ready"})
    kube.scale("lobby", 0)
    eventually(lambda: kube.list("pods"), [])

    with start():
        eventually(wire.service, ({}, "ScaledToZero"))


def test_an_old_writer_cannot_overwrite_newer_state(
    kube: Kube, wire: Wire, operator: Operator, redis_server: RedisServer
) -> None:
    ns, stored = kube.namespace, int(wire.version("lobby", "1") or 0)
    eventually(wire.workload, "Available")
    with sync.StatefulExecutor.from_url(redis_server.url) as old:
        for version in ("1", str(stored - 1)):
            assert old.set_service_state(ns, "lobby", 1, "Failed", version=version) is False
            assert old.set_service_state(ns, "lobby", 1, "", version=version) is False
        assert old.set_workload_state(ns, "lobby", "Unavailable", version="1") is False
        assert wire.service() == ({"0": "Ready", "1": "Ready"}, "Available")

        # Nor can it bring back what is gone since.
        kube.scale("lobby", 1)
        eventually(wire.states, {"0": "Ready"})
        assert old.set_service_state(ns, "lobby", 1, "Ready", version=str(stored)) is False
        kube.delete("statefulsets", "lobby")
        eventually(wire.service, ({}, None))
        assert old.set_service_state(ns, "lobby", 0, "Ready", version=str(stored)) is False
        assert old.set_workload_state(ns, "lobby", "Available", version=str(stored)) is False
        assert wire.service() == ({}, None)


def embedded_url(operator: Operator) -> str:
    def told() -> str | None:
        return next((entry["url"] for entry in operator.log() if "embedded" in entry["message"]), None)

    return until(told, 60, "the operator to say where its Valkey is")


def test_the_embedded_valkey_keeps_the_links_over_a_restart(cluster: Cluster, kube: Kube, tmp_path: Path) -> None:
    flags = ["--namespace", kube.namespace, "--data-dir", str(tmp_path / "data")]
    with start_operator(cluster, *flags) as first:
        first.await_start()
        kube.link("kept", podId=1)
        eventually(lambda: kube.report("kept"), ("Linked", "Linked", 1))
        before, url = kube.get("podlinks", "kept"), embedded_url(first)
        first.process.stop()
    assert not answers(url)

    with start_operator(cluster, *flags) as second:
        second.await_start()
        with redis.Redis.from_url(embedded_url(second), decode_responses=True) as client:
            assert Wire(client, kube.namespace).link("kept") == ("1", "1")
            kube.link("new", podId=0)
            eventually(lambda: kube.report("new"), ("Linked", "Linked", 0))
            eventually(lambda: disagreement(kube, Wire(client, kube.namespace)), {})
        # It was there: nothing had to be repaired.
        assert kube.get("podlinks", "kept") == before
        second.process.stop()
        assert not answers(embedded_url(second))


def test_the_embedded_valkey_of_a_killed_operator_is_taken_over(cluster: Cluster, kube: Kube, tmp_path: Path) -> None:
    flags = ["--namespace", kube.namespace, "--data-dir", str(tmp_path / "data")]
    with start_operator(cluster, *flags) as first:
        first.await_start()
        kube.link("kept", podId=1)
        eventually(lambda: kube.report("kept"), ("Linked", "Linked", 1))
        url = embedded_url(first)
        kill(first)
        with redis.Redis.from_url(url, decode_responses=True) as client:
            server = client.info("server")["run_id"]

            with start_operator(cluster, *flags) as second:
                second.await_start()
                assert embedded_url(second) == url
                assert client.info("server")["run_id"] == server
                kube.link("new", podId=0)
                eventually(lambda: kube.report("new"), ("Linked", "Linked", 0))
                eventually(lambda: disagreement(kube, Wire(client, kube.namespace)), {})
                second.process.stop()
        assert not answers(url)


def test_two_operators_do_not_share_an_embedded_valkey(cluster: Cluster, kube: Kube, tmp_path: Path) -> None:
    flags = ["--namespace", kube.namespace, "--data-dir", str(tmp_path / "data")]
    with start_operator(cluster, *flags) as first:
        first.await_start()
        with start_operator(cluster, *flags) as second:
            assert second.process.wait(30) == 1
            assert "another operator uses the embedded Valkey in" in second.process.log_tail()
            assert "Traceback" not in second.process.log_tail()
        assert answers(embedded_url(first))
        first.process.stop()


def answers(url: str) -> bool:
    with redis.Redis.from_url(url) as client:
        try:
            return client.ping()
        except redis.ConnectionError:
            return False
