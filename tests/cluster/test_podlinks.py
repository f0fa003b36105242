"""PodLinks on a real API server: one test for each rule of what they do, seen through their status and raw Redis.

The operator resyncs too seldom to help here (see conftest), so each reaction is one to an event. Each test has uids of
its own and, where it changes the pods, a service of its own; `lobby` has three Ready pods that nobody touches.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from cluster.harness import NO_LINK, Kube, Wire, later, ready
from cluster.operators import Operator
from sandbox.processes import eventually, until

if TYPE_CHECKING:
    from podlink import sync
    from sandbox.cluster import Cluster


@pytest.fixture(scope="module", autouse=True)
def lobby(kube: Kube, wire: Wire) -> None:
    kube.stateful_set("lobby", 3)
    eventually(wire.states, {"0": "Ready", "1": "Ready", "2": "Ready"})


def test_a_podlink_links_its_uid_to_the_pod_it_names(kube: Kube, wire: Wire) -> None:
    created = kube.link("plain", podId=2)

    eventually(lambda: kube.report("plain"), ("Linked", "Linked", 2))
    status = kube.status("plain")
    (condition,) = status.pop("conditions")
    assert status.pop("linkedAt") >= created["metadata"]["creationTimestamp"]
    assert status == {"phase": "Linked", "podId": 2, "podName": "lobby-2", "owned": True, "observedGeneration": 1}
    assert condition.pop("lastTransitionTime") >= created["metadata"]["creationTimestamp"]
    assert condition == {
        "type": "Ready",
        "status": "True",
        "reason": "Linked",
        "message": "uid plain is linked to pod 2 (lobby-2)",
        "observedGeneration": 1,
    }
    assert wire.link("plain") == ("2", "2")
    assert wire.milliseconds("plain") == -1


def test_pod_0_is_a_pod_like_any_other(kube: Kube, wire: Wire) -> None:
    kube.link("zero", podId=0)

    eventually(lambda: kube.report("zero"), ("Linked", "Linked", 0))
    assert wire.link("zero") == ("0", "0")
    kube.edit("zero", podId=1)
    eventually(lambda: kube.report("zero"), ("Linked", "Linked", 1))
    assert kube.status("zero")["previousPodId"] == 0
    kube.edit("zero", podId=0)
    eventually(lambda: kube.report("zero"), ("Linked", "Linked", 0))
    kube.unlink("zero")
    assert wire.link("zero") == NO_LINK


def test_a_pod_that_the_service_has_not_is_waited_for(kube: Kube, wire: Wire) -> None:
    kube.stateful_set("growing", 1)
    kube.link("early", service="growing", podId=1)

    eventually(lambda: kube.report("early"), ("Pending", "PodNotFound", None))
    assert kube.message("early") == "service growing has no pod 1"
    assert wire.link("early", "growing") == NO_LINK
    assert wire.loads("growing") == {}

    kube.scale("growing", 2)
    eventually(lambda: kube.report("early"), ("Linked", "Linked", 1))
    assert wire.link("early", "growing") == ("1", "1")
    assert wire.loads("growing") == {"1": "1"}


@pytest.mark.parametrize("spec", [{}, {"podId": 0}])
def test_a_service_that_is_not_there_is_waited_for(kube: Kube, wire: Wire, spec: dict[str, int]) -> None:
    service = f"later{len(spec)}"
    kube.link(f"first-{service}", "first", service, **spec)

    eventually(lambda: kube.report(f"first-{service}"), ("Pending", "WaitingForService", None))
    assert kube.message(f"first-{service}") == f"no pod or StatefulSet of service {service} is there"
    assert wire.link("first", service) == NO_LINK

    kube.stateful_set(service, 1)
    eventually(lambda: kube.report(f"first-{service}"), ("Linked", "Linked", 0))


def test_without_podid_a_ready_pod_is_waited_for(kube: Kube, wire: Wire) -> None:
    kube.stateful_set("cold", 2, driven=True)
    eventually(lambda: wire.states("cold"), {"0": "Pending", "1": "Pending"})
    kube.link("any", service="cold")

    eventually(lambda: kube.report("any"), ("Pending", "NoReadyPod", None))
    assert kube.message("any") == "service cold has no Ready pod"
    kube.drive("cold-1", is_ready=True)
    eventually(lambda: kube.report("any"), ("Linked", "Linked", 1))
    assert wire.link("any", "cold") == ("1", "1")


def test_a_named_pod_need_not_be_ready(kube: Kube, wire: Wire) -> None:
    kube.stateful_set("starting", 1, driven=True)
    eventually(lambda: wire.states("starting"), {"0": "Pending"})
    kube.link("named", service="starting", podId=0)

    eventually(lambda: kube.report("named"), ("Linked", "Linked", 0))


def test_without_podid_links_spread_over_the_least_loaded_pods(kube: Kube, wire: Wire) -> None:
    kube.stateful_set("even", 3)
    eventually(lambda: wire.states("even"), {"0": "Ready", "1": "Ready", "2": "Ready"})
    kube.link("spread-0", service="even", podId=1)
    eventually(lambda: kube.report("spread-0"), ("Linked", "Linked", 1))
    for number in range(1, 6):
        kube.link(f"spread-{number}", service="even")

    eventually(lambda: wire.loads("even"), {"0": "2", "1": "2", "2": "2"})


def test_an_edited_podid_moves_the_link_in_one_step(kube: Kube, wire: Wire) -> None:
    kube.link("edited", podId=1)
    eventually(lambda: kube.report("edited"), ("Linked", "Linked", 1))

    with wire.monitor() as commands:
        kube.edit("edited", podId=2)
        eventually(lambda: kube.report("edited"), ("Linked", "Linked", 2))
    key = f"sf:{{{kube.namespace}:lk:edited}}lobby"
    writes = [words for words in commands if words[0] in ("SET", "DEL", "UNLINK", "GETDEL", "EXPIRE") and key in words]
    assert writes == [["SET", key, "2"]]
    assert wire.link("edited") == ("2", "2")
    assert kube.status("edited")["previousPodId"] == 1
    assert kube.status("edited")["podName"] == "lobby-2"


def test_an_edit_to_a_pod_that_is_not_there_keeps_the_link(kube: Kube, wire: Wire) -> None:
    kube.link("hasty", podId=1)
    eventually(lambda: kube.report("hasty"), ("Linked", "Linked", 1))
    kube.edit("hasty", podId=7)

    eventually(lambda: kube.report("hasty"), ("Pending", "PodNotFound", 1))
    assert wire.link("hasty") == ("1", "1")
    kube.unlink("hasty")
    assert wire.link("hasty") == NO_LINK


def test_a_permanent_link_of_somebody_else_is_waited_for(
    kube: Kube, wire: Wire, gateway: sync.StatefulExecutor
) -> None:
    gateway.set_linked_pod(kube.namespace, "held", "lobby", 1)
    kube.link("held", podId=2)

    eventually(lambda: kube.report("held"), ("Conflict", "HeldByAnotherPod", None))
    assert kube.message("held") == ("uid held has a permanent link to pod 1 (lobby-1); it is taken over when released")
    assert wire.link("held") == ("1", "1")

    gateway.remove_linked_pod(kube.namespace, "held", "lobby")
    eventually(lambda: kube.report("held"), ("Linked", "Linked", 2))
    assert wire.link("held") == ("2", "2")


def test_a_link_of_somebody_else_outlives_the_podlink_that_waited_for_it(
    kube: Kube, wire: Wire, gateway: sync.StatefulExecutor
) -> None:
    gateway.set_linked_pod(kube.namespace, "kept", "lobby", 1)
    kube.link("kept", podId=2)
    eventually(lambda: kube.report("kept"), ("Conflict", "HeldByAnotherPod", None))

    kube.unlink("kept")
    assert wire.link("kept") == ("1", "1")


def test_a_temporary_link_of_somebody_else_does_not_win(kube: Kube, wire: Wire, gateway: sync.StatefulExecutor) -> None:
    gateway.set_linked_pod(kube.namespace, "passing", "lobby", 1, persist_seconds=600)
    kube.link("passing", podId=2)

    eventually(lambda: kube.report("passing"), ("Linked", "Linked", 2))
    assert wire.link("passing") == ("2", "2")
    assert wire.milliseconds("passing") == -1
    assert kube.status("passing")["previousPodId"] == 1


def test_without_podid_the_link_that_is_there_is_the_declared_one(
    kube: Kube, wire: Wire, gateway: sync.StatefulExecutor
) -> None:
    gateway.set_linked_pod(kube.namespace, "there", "lobby", 1)
    kube.link("there")

    eventually(lambda: kube.report("there"), ("Linked", "AlreadyLinked", 1))
    assert kube.status("there")["owned"] is True
    kube.unlink("there")
    assert wire.link("there") == NO_LINK


def test_set_overwrites(kube: Kube, wire: Wire, gateway: sync.StatefulExecutor) -> None:
    gateway.set_linked_pod(kube.namespace, "forced", "lobby", 1)
    kube.link("forced", podId=2, policy="Set")

    eventually(lambda: kube.report("forced"), ("Linked", "Linked", 2))
    assert kube.status("forced")["previousPodId"] == 1
    assert wire.link("forced") == ("2", "2")


def test_if_absent_adopts_a_link_and_leaves_it_alone(kube: Kube, wire: Wire, gateway: sync.StatefulExecutor) -> None:
    gateway.set_linked_pod(kube.namespace, "adopted", "lobby", 1)
    kube.link("adopted", podId=2, policy="IfAbsent")

    eventually(lambda: kube.report("adopted"), ("Linked", "AlreadyLinked", 1))
    assert kube.status("adopted")["owned"] is False
    kube.unlink("adopted")
    assert wire.link("adopted") == ("1", "1")


@pytest.mark.parametrize("spec", [{"podId": 2}, {}])
def test_if_absent_owns_what_it_set_itself(kube: Kube, wire: Wire, spec: dict[str, int]) -> None:
    name = f"absent-{len(spec)}"
    kube.link(name, policy="IfAbsent", **spec)

    eventually(lambda: kube.report(name)[:2], ("Linked", "Linked"))
    assert kube.status(name)["owned"] is True
    assert wire.link(name) == (str(kube.status(name)["podId"]),) * 2
    kube.unlink(name)
    assert wire.link(name) == NO_LINK


def test_of_several_podlinks_for_one_link_the_oldest_holds_it(kube: Kube, wire: Wire) -> None:
    for name, pod in [("oldest", 0), ("middle", 1), ("youngest", 2)]:
        kube.link(name, "wanted", podId=pod)
        later()

    eventually(lambda: kube.report("oldest"), ("Linked", "Linked", 0))
    for name in ("middle", "youngest"):
        eventually(lambda name=name: kube.report(name), ("Conflict", "DuplicatePodLink", None))
        assert kube.message(name) == (
            "PodLink oldest is older and links uid wanted to service lobby; "
            "this one takes over when that one is deleted"
        )
    assert wire.link("wanted") == ("0", "0")

    kube.delete("podlinks", "oldest")
    eventually(lambda: kube.report("middle"), ("Linked", "Linked", 1))
    eventually(lambda: "PodLink middle is older" in kube.message("youngest"), expected=True)
    assert wire.link("wanted") == ("1", "1")

    kube.delete("podlinks", "middle")
    eventually(lambda: kube.report("youngest"), ("Linked", "Linked", 2))
    assert wire.link("wanted") == ("2", "2")


def test_deleting_a_duplicate_leaves_the_link_of_the_older(kube: Kube, wire: Wire) -> None:
    kube.link("first", "shared")
    eventually(lambda: kube.report("first")[:2], ("Linked", "Linked"))
    held = wire.link("shared")
    later()
    kube.link("second", "shared")
    eventually(lambda: kube.report("second"), ("Conflict", "DuplicatePodLink", None))

    kube.unlink("second")
    assert wire.link("shared") == held


def test_a_duplicate_takes_over_when_the_older_one_has_expired(kube: Kube, wire: Wire) -> None:
    kube.link("brief", "relay", podId=0, persistSeconds=2)
    later()
    kube.link("steady", "relay", podId=1)

    eventually(lambda: kube.report("brief"), ("Expired", "Expired", None))
    eventually(lambda: kube.report("steady"), ("Linked", "Linked", 1))
    assert wire.link("relay") == ("1", "1")


def test_delete_removes_the_link_and_its_load(kube: Kube, wire: Wire) -> None:
    kube.stateful_set("small", 1)
    kube.link("leaving", service="small", podId=0)
    kube.link("staying", service="small", podId=0)
    eventually(lambda: wire.loads("small"), {"0": "2"})

    kube.unlink("leaving")
    assert wire.link("leaving", "small") == NO_LINK
    assert wire.loads("small") == {"0": "1"}


def test_delete_leaves_a_link_that_somebody_moved_elsewhere(
    kube: Kube, wire: Wire, gateway: sync.StatefulExecutor
) -> None:
    kube.link("moved", podId=1)
    eventually(lambda: kube.report("moved"), ("Linked", "Linked", 1))
    gateway.set_linked_pod(kube.namespace, "moved", "lobby", 2)

    kube.unlink("moved")
    assert wire.link("moved") == ("2", "2")


def test_release_seconds_keep_the_link_for_a_reconnect(kube: Kube, wire: Wire) -> None:
    kube.stateful_set("window", 2)
    kube.link("back", service="window", podId=1, releaseSeconds=60)
    eventually(lambda: kube.report("back"), ("Linked", "Linked", 1))

    kube.unlink("back")
    assert wire.link("back", "window") == ("1", None)
    assert 50_000 < wire.milliseconds("back", "window") <= 60_000
    assert wire.loads("window") == {}

    kube.link("back", service="window")
    eventually(lambda: kube.report("back"), ("Linked", "Linked", 1))
    assert wire.link("back", "window") == ("1", "1")
    assert wire.milliseconds("back", "window") == -1
    assert wire.loads("window") == {"1": "1"}


def test_a_temporary_link_expires_and_the_status_follows(
    kube: Kube, wire: Wire, gateway: sync.StatefulExecutor
) -> None:
    kube.stateful_set("hourglass", 1)
    kube.link("brief-stay", service="hourglass", podId=0, persistSeconds=15)
    eventually(lambda: kube.report("brief-stay"), ("Linked", "Linked", 0))
    status = kube.status("brief-stay")
    lasts = datetime.fromisoformat(status["expiresAt"]) - datetime.fromisoformat(status["linkedAt"])
    assert timedelta(seconds=12) <= lasts <= timedelta(seconds=17)
    assert 0 < wire.milliseconds("brief-stay", "hourglass") <= 15_000
    assert gateway.get_service(kube.namespace, "hourglass").loads == {0: 1}

    eventually(lambda: kube.report("brief-stay"), ("Expired", "Expired", None))
    status = kube.status("brief-stay")
    assert ready(status)["status"] == "False"
    assert status["previousPodId"] == 0
    assert "expiresAt" not in status
    assert wire.link("brief-stay", "hourglass") == NO_LINK
    assert gateway.get_service(kube.namespace, "hourglass").loads == {0: 0}

    kube.edit("brief-stay", persistSeconds=-1)
    eventually(lambda: kube.report("brief-stay"), ("Linked", "Linked", 0))
    assert wire.milliseconds("brief-stay", "hourglass") == -1


def test_a_pod_that_restarts_keeps_its_links(kube: Kube, wire: Wire) -> None:
    kube.stateful_set("hall", 2)
    kube.link("guest", service="hall", podId=1, onPodLoss="Release")
    eventually(lambda: kube.report("guest"), ("Linked", "Linked", 1))
    before, pod = kube.get("podlinks", "guest"), kube.get("pods", "hall-1")

    kube.delete("pods", "hall-1")
    until(lambda: (kube.get("pods", "hall-1") or pod)["metadata"]["uid"] != pod["metadata"]["uid"], 60, "a new hall-1")
    until(lambda: ready(kube.get("pods", "hall-1")["status"]).get("status") == "True", 60, "it to be Ready")
    until(
        lambda: wire.version("hall", "1") == kube.get("pods", "hall-1")["metadata"]["resourceVersion"],
        60,
        "its state to be written",
    )
    assert wire.states("hall") == {"0": "Ready", "1": "Ready"}
    assert kube.get("podlinks", "guest") == before
    assert wire.link("guest", "hall") == ("1", "1")


def test_a_pod_that_is_scaled_away(kube: Kube, wire: Wire, gateway: sync.StatefulExecutor) -> None:
    kube.stateful_set("tide", 2)
    eventually(lambda: wire.states("tide"), {"0": "Ready", "1": "Ready"})
    gateway.set_linked_pod(kube.namespace, "mover", "tide", 1)
    kube.link("keeper", service="tide", podId=1)
    kube.link("mover", service="tide", onPodLoss="Relink")
    kube.link("quitter", service="tide", podId=1, onPodLoss="Release")
    kube.link("adopter", service="tide", podId=1, policy="IfAbsent", onPodLoss="Keep")
    for name in ("keeper", "mover", "quitter", "adopter"):
        eventually(lambda name=name: (kube.report(name)[0], kube.report(name)[2]), ("Linked", 1))

    kube.scale("tide", 1)
    eventually(lambda: kube.report("keeper"), ("Linked", "PodLost", 1))
    assert ready(kube.status("keeper"))["status"] == "False"
    assert (
        kube.message("keeper") == "pod 1 (tide-1) is no longer part of its service; the link is kept (onPodLoss: Keep)"
    )
    assert wire.link("keeper", "tide") == ("1", "1")
    eventually(lambda: kube.report("mover"), ("Linked", "Linked", 0))
    assert kube.status("mover")["previousPodId"] == 1
    assert wire.link("mover", "tide") == ("0", "0")
    eventually(lambda: kube.report("quitter"), ("Released", "PodLost", None))
    assert (
        kube.message("quitter")
        == "pod 1 (tide-1) is no longer part of its service; the link was released (onPodLoss: Release)"
    )
    assert wire.link("quitter", "tide") == NO_LINK

    kube.scale("tide", 2)
    eventually(lambda: ready(kube.status("keeper"))["status"], "True")
    eventually(lambda: wire.states("tide"), {"0": "Ready", "1": "Ready"})
    kube.link("witness", service="tide", podId=1)
    eventually(lambda: kube.report("witness"), ("Linked", "Linked", 1))
    assert kube.report("quitter") == ("Released", "PodLost", None)
    assert wire.link("quitter", "tide") == NO_LINK
    assert wire.link("mover", "tide") == ("0", "0")


def test_a_workload_that_is_deleted(kube: Kube, wire: Wire) -> None:
    kube.stateful_set("gone", 1)
    for name, spec in {
        "loyal": {"podId": 0},
        "flexible": {"onPodLoss": "Relink"},
        "done": {"onPodLoss": "Release"},
    }.items():
        kube.link(name, service="gone", **spec)
        eventually(lambda name=name: kube.report(name), ("Linked", "Linked", 0))

    kube.delete("statefulsets", "gone")
    eventually(lambda: kube.report("loyal"), ("Linked", "PodLost", 0))
    eventually(lambda: kube.report("flexible"), ("Linked", "PodLost", 0))
    assert kube.message("flexible") == "pod 0 (gone-0) is no longer part of its service; relinks when a pod is Ready"
    eventually(lambda: kube.report("done"), ("Released", "PodLost", None))
    assert [wire.link(name, "gone") for name in ("loyal", "flexible", "done")] == [("0", "0"), ("0", "0"), NO_LINK]

    kube.stateful_set("gone", 1, ordinals={"start": 5})
    eventually(lambda: kube.report("flexible"), ("Linked", "Linked", 5))
    assert wire.link("flexible", "gone") == ("5", "5")
    assert kube.report("loyal") == ("Linked", "PodLost", 0)
    assert wire.loads("gone") == {"0": "1", "5": "1"}


def test_events_are_made_on_transitions_only(kube: Kube, gateway: sync.StatefulExecutor) -> None:
    gateway.set_linked_pod(kube.namespace, "storied", "lobby", 1)
    kube.link("storied", podId=2)
    eventually(lambda: kube.report("storied"), ("Conflict", "HeldByAnotherPod", None))
    gateway.remove_linked_pod(kube.namespace, "storied", "lobby")
    eventually(lambda: kube.report("storied"), ("Linked", "Linked", 2))
    kube.patch("podlinks", "storied", {"metadata": {"labels": {"touched": "true"}}})
    kube.edit("storied", releaseSeconds=5)
    eventually(lambda: kube.status("storied")["observedGeneration"], 2)

    # Events go out in order, so when that of a younger PodLink is there, those of the other are, too.
    kube.link("witness-of-events", podId=0)
    eventually(lambda: kube.events("witness-of-events"), [("Normal", "Linked")])
    assert kube.events("storied") == [("Warning", "HeldByAnotherPod"), ("Normal", "Linked")]
    assert kube.note("storied", "Linked") == "uid storied is linked to pod 2 (lobby-2)"


def test_a_link_that_redis_refuses_says_why_and_is_made_when_it_can_be(kube: Kube, wire: Wire) -> None:
    key = f"sf:{{{kube.namespace}:lk:refused}}lobby"
    wire.redis.rpush(key, "somebody else's")
    kube.link("refused", podId=1)
    eventually(lambda: kube.report("refused"), ("Pending", "RedisUnavailable", None))
    told = "Redis refuses the link, which is tried again: get_linked_pod: GET failed"
    assert kube.message("refused").startswith(told)
    assert key in kube.message("refused")
    eventually(lambda: kube.events("refused"), [("Warning", "RedisUnavailable")])

    wire.redis.delete(key)
    eventually(lambda: kube.report("refused"), ("Linked", "Linked", 1), timeout=60)
    kube.unlink("refused")


def test_a_link_that_waits_says_so_when_redis_refuses_it(kube: Kube, wire: Wire) -> None:
    kube.link("awaited", podId=7)
    eventually(lambda: kube.report("awaited"), ("Pending", "PodNotFound", None))
    key = f"sf:{{{kube.namespace}:lk:awaited}}lobby"
    wire.redis.rpush(key, "somebody else's")
    kube.patch("podlinks", "awaited", {"metadata": {"labels": {"looked": "at"}}})
    eventually(lambda: kube.report("awaited"), ("Pending", "RedisUnavailable", None))
    assert key in kube.message("awaited")

    wire.redis.delete(key)
    eventually(lambda: kube.report("awaited"), ("Pending", "PodNotFound", None), timeout=60)
    kube.unlink("awaited")


def test_namespaces_do_not_interfere(cluster: Cluster, kube: Kube, wire: Wire) -> None:
    name = cluster.create_namespace()
    with Kube(cluster, name) as other:
        there = Wire(wire.redis, name)
        other.link("twin", podId=1)
        kube.link("twin", podId=2)
        eventually(lambda: kube.report("twin"), ("Linked", "Linked", 2))
        eventually(lambda: other.report("twin"), ("Pending", "WaitingForService", None))
        assert there.link("twin") == NO_LINK

        other.stateful_set("lobby", 2)
        eventually(lambda: other.report("twin"), ("Linked", "Linked", 1))
        assert there.loads() == {"1": "1"}
        kube.unlink("twin")
        assert wire.link("twin") == NO_LINK
        assert there.link("twin") == ("1", "1")
    cluster.delete_namespace(name)


def test_metrics_count_the_podlinks_by_phase(kube: Kube, operator: Operator) -> None:
    phases = Counter(link["status"]["phase"] for link in kube.list("podlinks"))

    assert phases["Linked"] >= 1
    for phase in ("Pending", "Linked", "Conflict", "Expired", "Released"):
        # The operator serves all namespaces; of those of earlier tests, it may hear of the last deletions only now.
        eventually(lambda phase=phase: operator.metric(f'podlink_podlinks{{phase="{phase}"}}'), phases[phase])
    operator.await_ready()
    assert operator.metric("podlink_redis_up") == 1
    assert operator.readyz()[1] == "ok\n"
    assert operator.healthz() == (200, "ok\n")


def test_after_all_this_every_load_is_the_number_of_links(
    kube: Kube, wire: Wire, gateway: sync.StatefulExecutor
) -> None:
    for service in wire.all_loads():
        gateway.get_service(kube.namespace, service)  # takes expired links off the loads, as every pick does

    assert wire.all_loads() == wire.all_links()


@pytest.mark.parametrize("name", [f"{'p' * 199}-q", f"{'p' * 235}.q", "p" * 253], ids=["200", "236", "253"])
def test_an_event_about_a_long_name_and_a_long_uid_is_taken_by_the_api_server(kube: Kube, name: str) -> None:
    """Its own name has to end each part with a letter or a digit, and its note is limited in bytes."""
    uid = "é" * 1000
    kube.link(name, uid, podId=2)
    eventually(lambda: kube.events(name), [("Normal", "Linked")])
    note = kube.note(name, "Linked")
    assert note == f"uid {uid} is linked"[: len(note)]
    assert 1020 <= len(note.encode()) <= 1024
    kube.unlink(name)


def test_conditions_of_other_controllers_stay(kube: Kube) -> None:
    kube.link("seen", podId=0)
    eventually(lambda: kube.report("seen"), ("Linked", "Linked", 0))
    foreign = {
        "type": "example.com/Audited",
        "status": "Unknown",
        "reason": "Later",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
        "observedGeneration": 7,
    }
    kube.patch_status("podlinks", "seen", {"conditions": [foreign, *kube.status("seen")["conditions"]]})
    kube.edit("seen", podId=1)
    eventually(lambda: kube.report("seen"), ("Linked", "Linked", 1))
    conditions = {condition["type"]: condition for condition in kube.status("seen")["conditions"]}
    assert conditions.keys() == {"Ready", "example.com/Audited"}
    assert conditions["example.com/Audited"] == foreign
