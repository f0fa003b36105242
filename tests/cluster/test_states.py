"""Every state of pods and workloads, from a real API server and its controllers to Redis.

Most pods here have a node selector that no node matches, so no kubelet writes their status and the test does: a pod is
then NotReady exactly when the test says so, in any cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cluster.harness import Kube, Wire, bare_pod, later, stateful_set
from cluster.operators import Operator, running_operator
from sandbox.processes import eventually, until
from sandbox.redis_servers import RedisServer

if TYPE_CHECKING:
    from sandbox.cluster import Cluster

DRAINING = {"podlink.io/draining": "true"}
HOLD = ("example.com/hold",)


def labels(service: str, pod_id: int) -> dict[str, str]:
    """Of a pod that belongs to a service without a StatefulSet; the last one is what the operator selects pods by."""
    return {
        "podlink.io/service": service,
        "podlink.io/pod-id": str(pod_id),
        "apps.kubernetes.io/pod-index": str(pod_id),
    }


READY = {"type": "Ready", "status": "True"}
NOT_READY = {"type": "Ready", "status": "False"}


@pytest.mark.parametrize(
    ("status", "metadata", "state"),
    [
        pytest.param({}, {}, "Pending", id="pending"),
        pytest.param({"phase": "Running", "conditions": [READY]}, {}, "Ready", id="ready"),
        pytest.param({"phase": "Running", "conditions": [NOT_READY]}, {}, "NotReady", id="not-ready"),
        pytest.param({"phase": "Running"}, {}, "NotReady", id="running"),
        pytest.param({"phase": "Running", "conditions": [READY], "reason": "NodeLost"}, {}, "NotReady", id="node-lost"),
        pytest.param({"phase": "Unknown", "conditions": [READY]}, {}, "NotReady", id="unknown"),
        pytest.param({"phase": "Failed"}, {}, "Failed", id="failed"),
        pytest.param({"phase": "Succeeded"}, {}, "Succeeded", id="succeeded"),
        pytest.param(
            {"phase": "Running", "conditions": [READY]}, {"labels": DRAINING}, "Draining", id="draining-by-label"
        ),
        pytest.param(
            {"phase": "Running", "conditions": [READY]},
            {"annotations": DRAINING},
            "Draining",
            id="draining-by-annotation",
        ),
        pytest.param(
            {"phase": "Running", "conditions": [READY]},
            {"annotations": {"podlink.io/draining": "false"}},
            "Ready",
            id="not-draining",
        ),
        pytest.param({"phase": "Failed"}, {"labels": DRAINING}, "Failed", id="failed-before-draining"),
    ],
)
def test_the_state_of_a_pod(
    request: pytest.FixtureRequest, kube: Kube, wire: Wire, status: dict[str, Any], metadata: dict[str, Any], state: str
) -> None:
    name = request.node.callspec.id
    pod = bare_pod(name, labels(name, 7))
    kube.create("pods", pod)
    eventually(lambda: wire.states(name), {"7": "Pending"})
    if status:
        kube.patch_status("pods", name, status)
    if metadata:
        kube.patch("pods", name, {"metadata": metadata})

    eventually(lambda: wire.states(name), {"7": state})
    assert wire.workload(name) is None


def test_a_pod_that_is_being_deleted_is_terminating_whatever_else_it_is(kube: Kube, wire: Wire) -> None:
    pod = bare_pod("last-words", labels("last-words", 0) | DRAINING)
    pod["metadata"]["finalizers"] = list(HOLD)
    kube.create("pods", pod)
    kube.drive("last-words", "Failed")
    eventually(lambda: wire.states("last-words"), {"0": "Failed"})

    kube.delete("pods", "last-words")
    eventually(lambda: wire.states("last-words"), {"0": "Terminating"})
    kube.patch("pods", "last-words", {"metadata": {"finalizers": None}})
    eventually(lambda: wire.states("last-words"), {})


def test_a_pod_comes_back_from_draining(kube: Kube, wire: Wire) -> None:
    kube.create("pods", bare_pod("rested", labels("rested", 0)))
    kube.drive("rested", is_ready=True)
    for wanted, state in [("true", "Draining"), (None, "Ready")]:
        kube.patch("pods", "rested", {"metadata": {"labels": {"podlink.io/draining": wanted}}})
        eventually(lambda state=state: wire.states("rested"), {"0": state})


def test_a_draining_pod_keeps_its_links_and_gets_no_new_ones(kube: Kube, wire: Wire) -> None:
    kube.stateful_set("drained", 2)
    eventually(lambda: wire.states("drained"), {"0": "Ready", "1": "Ready"})
    for name in ("busy-1", "busy-2"):
        kube.link(name, service="drained", podId=1)
        eventually(lambda name=name: kube.report(name), ("Linked", "Linked", 1))
    kube.link("stays", service="drained", podId=0)
    eventually(lambda: kube.report("stays"), ("Linked", "Linked", 0))
    kube.patch("pods", "drained-0", {"metadata": {"labels": DRAINING}})
    eventually(lambda: wire.states("drained"), {"0": "Draining", "1": "Ready"})

    kube.link("newcomer", service="drained")
    eventually(lambda: kube.report("newcomer"), ("Linked", "Linked", 1))
    assert wire.loads("drained") == {"0": "1", "1": "3"}


@pytest.mark.parametrize(
    ("options", "service"),
    [
        pytest.param({"service_name": ""}, "by-name", id="by-name"),
        pytest.param({"service_name": "by-service-name"}, "by-service-name", id="by-service-name"),
        pytest.param(
            {"service_name": "overruled", "labels": {"podlink.io/service": "By.Label_1"}}, "By.Label_1", id="by-label"
        ),
    ],
)
def test_the_service_of_a_stateful_set(
    request: pytest.FixtureRequest, kube: Kube, wire: Wire, options: dict[str, Any], service: str
) -> None:
    kube.stateful_set(request.node.callspec.id, 1, **options)

    eventually(lambda: wire.service(service), ({"0": "Ready"}, "Available"))


def test_the_service_of_a_bare_pod_is_its_subdomain(kube: Kube, wire: Wire) -> None:
    kube.create("pods", bare_pod("alone", {"apps.kubernetes.io/pod-index": "4"}, subdomain="hermits"))

    eventually(lambda: wire.states("hermits"), {"4": "Pending"})


def test_a_pod_that_moves_to_another_service_leaves_the_first(kube: Kube, wire: Wire) -> None:
    kube.create("pods", bare_pod("nomad", labels("summer", 1)))
    eventually(lambda: wire.states("summer"), {"1": "Pending"})
    kube.patch("pods", "nomad", {"metadata": {"labels": {"podlink.io/service": "winter", "podlink.io/pod-id": "2"}}})

    eventually(lambda: (wire.states("summer"), wire.states("winter")), ({}, {"2": "Pending"}))


def test_a_pod_without_a_usable_id_is_left_out_and_told_of(kube: Kube, wire: Wire, operator: Operator) -> None:
    kube.create("pods", bare_pod("nameless", labels("anon", 0) | {"podlink.io/pod-id": "first"}))
    kube.create("pods", bare_pod("witness", labels("anon", 1)))

    eventually(lambda: wire.states("anon"), {"1": "Pending"})
    told = (
        f"Pod {kube.namespace}/nameless is left out: label podlink.io/pod-id='first' gives no pod id; "
        "set label podlink.io/pod-id to an integer from 0 to 2147483647"
    )
    assert told in [entry["message"] for entry in operator.log()]
    assert operator.metric('podlink_unidentified_objects_total{kind="Pod"}') >= 1


def test_ordinals_start_counts(kube: Kube, wire: Wire) -> None:
    kube.stateful_set("fifth", 2, ordinals={"start": 5})
    eventually(lambda: wire.service("fifth"), ({"5": "Ready", "6": "Ready"}, "Available"))

    kube.link("at-six", service="fifth", podId=6)
    kube.link("at-four", service="fifth", podId=4)
    eventually(lambda: kube.report("at-six"), ("Linked", "Linked", 6))
    eventually(lambda: kube.report("at-four"), ("Pending", "PodNotFound", None))


def test_a_workload_from_its_first_pod_to_its_last(kube: Kube, wire: Wire) -> None:
    kube.stateful_set("life", 2, driven=True, podManagementPolicy="OrderedReady")
    # The second pod is made when the first is Ready: until then pods are still being created.
    eventually(lambda: wire.service("life"), ({"0": "Pending"}, "Progressing"))

    kube.drive("life-0", is_ready=True)
    eventually(lambda: wire.service("life"), ({"0": "Ready", "1": "Pending"}, "Degraded"))
    kube.drive("life-1", is_ready=True)
    eventually(lambda: wire.service("life"), ({"0": "Ready", "1": "Ready"}, "Available"))
    kube.drive("life-0")
    eventually(lambda: wire.service("life"), ({"0": "NotReady", "1": "Ready"}, "Degraded"))
    kube.drive("life-1")
    eventually(lambda: wire.service("life"), ({"0": "NotReady", "1": "NotReady"}, "Unavailable"))
    kube.drive("life-0", is_ready=True)
    kube.drive("life-1", is_ready=True)
    kube.scale("life", 1)
    eventually(lambda: wire.service("life"), ({"0": "Ready"}, "Available"))
    kube.scale("life", 0)
    eventually(lambda: wire.service("life"), ({}, "ScaledToZero"))


def test_a_rollout_is_progress_until_the_last_pod_is_replaced(kube: Kube, wire: Wire) -> None:
    kube.stateful_set("rolling", 2, driven=True)
    for pod in ("rolling-0", "rolling-1"):
        kube.drive(pod, is_ready=True)
    eventually(lambda: wire.workload("rolling"), "Available")

    change_template(kube, "rolling")
    eventually(lambda: wire.service("rolling"), ({"0": "Ready", "1": "Pending"}, "Progressing"))
    kube.drive("rolling-1", is_ready=True)
    eventually(lambda: wire.service("rolling"), ({"0": "Pending", "1": "Ready"}, "Progressing"))
    kube.drive("rolling-0", is_ready=True)
    eventually(lambda: wire.workload("rolling"), "Available")


def test_a_rollout_is_done_when_it_reached_its_partition(kube: Kube, wire: Wire) -> None:
    kube.stateful_set("halfway", 2, driven=True, updateStrategy={"rollingUpdate": {"partition": 1}})
    for pod in ("halfway-0", "halfway-1"):
        kube.drive(pod, is_ready=True)
    eventually(lambda: wire.workload("halfway"), "Available")

    change_template(kube, "halfway")
    eventually(lambda: wire.states("halfway"), {"0": "Ready", "1": "Pending"})
    kube.drive("halfway-1", is_ready=True)
    eventually(lambda: wire.service("halfway"), ({"0": "Ready", "1": "Ready"}, "Available"))
    status = kube.get("statefulsets", "halfway")["status"]
    assert status["updateRevision"] != status["currentRevision"]


def test_with_on_delete_a_changed_template_is_no_rollout(kube: Kube, wire: Wire) -> None:
    kube.stateful_set("patient", 1, updateStrategy={"type": "OnDelete"})
    eventually(lambda: wire.workload("patient"), "Available")

    change_template(kube, "patient")
    eventually(lambda: kube.get("statefulsets", "patient")["status"]["observedGeneration"], 2)
    until(
        lambda: wire.workload_version("patient") == kube.get("statefulsets", "patient")["metadata"]["resourceVersion"],
        60,
        "its state to be written",
    )
    assert wire.workload("patient") == "Available"
    status = kube.get("statefulsets", "patient")["status"]
    assert status["updateRevision"] != status["currentRevision"]


def change_template(kube: Kube, name: str) -> None:
    kube.patch("statefulsets", name, {"spec": {"template": {"metadata": {"annotations": {"example.com/new": "1"}}}}})


def test_a_stateful_set_that_is_gone_leaves_no_state(kube: Kube, wire: Wire) -> None:
    kube.stateful_set("past", 2)
    eventually(lambda: wire.service("past"), ({"0": "Ready", "1": "Ready"}, "Available"))

    kube.delete("statefulsets", "past")
    eventually(lambda: wire.service("past"), ({}, None))
    # The versions that fence late writers go by themselves.
    assert all(0 < seconds <= 3600 for seconds in wire.tombstones("past"))


def test_a_stateful_set_that_is_being_deleted_is_terminating(kube: Kube, wire: Wire) -> None:
    kube.stateful_set("closing", 1, finalizers=HOLD)
    eventually(lambda: wire.workload("closing"), "Available")

    kube.delete("statefulsets", "closing", propagation="Foreground")
    eventually(lambda: wire.workload("closing"), "Terminating")
    eventually(lambda: wire.states("closing"), {})
    kube.patch("statefulsets", "closing", {"metadata": {"finalizers": None}})
    eventually(lambda: wire.workload("closing"), None)


def test_of_two_stateful_sets_with_the_same_ids_the_older_keeps_the_service(
    kube: Kube, wire: Wire, operator: Operator
) -> None:
    kube.stateful_set("blue", 2, service_name="color")
    eventually(lambda: wire.service("color"), ({"0": "Ready", "1": "Ready"}, "Available"))
    later()
    kube.stateful_set("green", 3, service_name="color", driven=True)

    eventually(lambda: kube.events("green", "StatefulSet").count(("Warning", "ServiceOverlap")), 1)
    assert kube.note("green", "ServiceOverlap", "StatefulSet") == (
        "StatefulSet blue is older and has ids 0 to 1 of service color, which overlap 0 to 2 of this one. PodLink "
        "writes nothing for this one. Give one of them another podlink.io/service label, serviceName or ordinals.start"
    )
    eventually(lambda: operator.metric("podlink_overlapping_workloads"), 1)
    # Its pods are known, as a pod of another service that was made after them shows, and are in no one's way.
    eventually(lambda: len([pod for pod in kube.list("pods") if pod["metadata"]["name"].startswith("green-")]), 3)
    kube.create("pods", bare_pod("after-green", labels("after-green", 0)))
    eventually(lambda: wire.states("after-green"), {"0": "Pending"})
    assert wire.service("color") == ({"0": "Ready", "1": "Ready"}, "Available")
    kube.link("third", service="color", podId=2)
    eventually(lambda: kube.report("third"), ("Pending", "PodNotFound", None))

    kube.delete("statefulsets", "blue")
    eventually(
        lambda: wire.service("color"),
        ({"0": "Pending", "1": "Pending", "2": "Pending"}, "Unavailable"),
    )
    eventually(lambda: operator.metric("podlink_overlapping_workloads"), 0)
    eventually(lambda: kube.report("third"), ("Linked", "Linked", 2))


def test_stateful_sets_with_other_ids_share_a_service_until_they_overlap(kube: Kube, wire: Wire) -> None:
    kube.stateful_set("low", 2, service_name="shared")
    later()
    kube.stateful_set("high", 1, service_name="shared", ordinals={"start": 2}, driven=True)
    both = {"0": "Ready", "1": "Ready", "2": "Pending"}
    eventually(lambda: wire.service("shared"), (both, "Degraded"))
    kube.drive("high-2", is_ready=True)
    eventually(lambda: wire.service("shared"), (dict.fromkeys("012", "Ready"), "Available"))

    kube.link("guest", service="shared", podId=2)
    eventually(lambda: kube.report("guest"), ("Linked", "Linked", 2))
    assert kube.status("guest")["podName"] == "high-2"
    kube.scale("low", 3)
    eventually(lambda: kube.events("high", "StatefulSet").count(("Warning", "ServiceOverlap")), 1)
    eventually(lambda: kube.ready_replicas("low"), 3)
    eventually(lambda: kube.status("guest")["podName"], "low-2")
    kube.drive("high-2")
    kube.scale("low", 2)
    eventually(lambda: wire.states("shared"), {"0": "Ready", "1": "Ready", "2": "NotReady"})
    assert wire.link("guest", "shared") == ("2", "2")


def test_with_an_empty_selector_every_pod_of_a_service_counts(cluster: Cluster) -> None:
    name = cluster.create_namespace()
    with (
        RedisServer() as server,
        server.client() as client,
        Kube(cluster, name) as kube,
        running_operator(cluster, "--redis-url", server.url, "--namespace", name, "--pod-selector", ""),
    ):
        kube.create("pods", bare_pod("cell-12", {}, subdomain="cells"))
        eventually(lambda: Wire(client, name).states("cells"), {"12": "Pending"})
    cluster.delete_namespace(name)


def test_a_redis_that_keeps_nothing_on_disk_is_a_warning_and_no_failure(operator: Operator) -> None:
    told = (
        "Redis: it keeps nothing on disk (neither appendonly nor save is set), so a restart loses all links;"
        " set appendonly to yes, or set save points (save)"
    )
    assert operator.readyz() == (200, "ok\n")
    assert operator.warnings() == [told]
    assert [entry["level"] for entry in operator.log() if entry["message"] == told] == ["warning"]


def test_pods_keep_their_service_without_their_stateful_set(kube: Kube, wire: Wire) -> None:
    """`kubectl delete statefulset --cascade=orphan`, and apply again: the way to change what is immutable."""
    kube.stateful_set("arcade", 2, service_name="")
    kube.link("p1", service="arcade", podId=1, onPodLoss="Release")
    eventually(lambda: kube.report("p1"), ("Linked", "Linked", 1))

    kube.delete("statefulsets", "arcade", propagation="Orphan")
    until(lambda: not kube.get("pods", "arcade-1")["metadata"].get("ownerReferences"), 60, "arcade-1 to be an orphan")
    kube.patch("pods", "arcade-1", {"metadata": {"labels": DRAINING}})
    eventually(lambda: wire.states("arcade"), {"0": "Ready", "1": "Draining"})
    assert kube.report("p1") == ("Linked", "Linked", 1)

    eventually(lambda: kube.get("statefulsets", "arcade"), None)
    kube.create("statefulsets", stateful_set("arcade", 2, service_name=""))
    until(lambda: kube.get("pods", "arcade-1")["metadata"].get("ownerReferences"), 60, "arcade-1 to be adopted")
    kube.patch("pods", "arcade-1", {"metadata": {"labels": {"podlink.io/draining": None}}})
    eventually(lambda: wire.states("arcade"), {"0": "Ready", "1": "Ready"})
    assert kube.report("p1") == ("Linked", "Linked", 1)
    assert wire.link("p1", service="arcade") == ("1", "1")
