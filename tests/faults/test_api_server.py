"""The API server goes away and comes back, and a watch misses what happened: the operator goes on by itself."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from cluster.harness import NO_LINK, Kube, Wire, disagreement
from cluster.operators import Operator
from sandbox.processes import eventually, until

if TYPE_CHECKING:
    from sandbox.control_plane import ControlPlane


def await_reaction(kube: Kube, wire: Wire, operator: Operator, name: str) -> None:
    """See that PodLinks and pods are watched again, and that nothing was lost."""
    kube.link(name, podId=1)
    eventually(lambda: kube.report(name), ("Linked", "Linked", 1), timeout=60)
    kube.scale("lobby", 3)
    eventually(wire.states, {"0": "Ready", "1": "Ready", "2": "Ready"}, timeout=60)
    eventually(operator.readyz, (200, "ok\n"), timeout=60)
    eventually(lambda: disagreement(kube, wire), {})


def test_the_api_server_restarts(control_plane: ControlPlane, kube: Kube, wire: Wire, operator: Operator) -> None:
    kube.link("before", podId=0)
    eventually(lambda: kube.report("before"), ("Linked", "Linked", 0))
    before = kube.get("podlinks", "before")

    control_plane.restart_api_server()
    await_reaction(kube, wire, operator, "after")
    assert kube.get("podlinks", "before") == before


def test_the_api_server_stays_away_for_longer_than_the_watches_try(
    control_plane: ControlPlane, kube: Kube, wire: Wire, operator: Operator
) -> None:
    kube.link("before", podId=0)
    eventually(lambda: kube.report("before"), ("Linked", "Linked", 0))
    control_plane.stop_api_server()
    try:
        until(lambda: operator.said("has been down for"), 60, "the operator to say so")
        assert "Cannot connect to host" in operator.readyz()[1]
        # What is in Redis stays in use.
        assert wire.link("before") == ("0", "0")
        assert wire.states() == {"0": "Ready", "1": "Ready"}
    finally:
        control_plane.start_api_server()

    await_reaction(kube, wire, operator, "after")


def test_a_watch_expires_and_deletions_are_noticed_all_the_same(
    control_plane: ControlPlane, kube: Kube, wire: Wire, operator: Operator
) -> None:
    kube.stateful_set("arena", 1)
    kube.link("gone", podId=1)
    kube.link("in-arena", service="arena", podId=0, onPodLoss="Release")
    eventually(lambda: kube.report("gone"), ("Linked", "Linked", 1))
    eventually(lambda: kube.report("in-arena"), ("Linked", "Linked", 0))

    # The first restart cuts the watches of an operator that cannot take them up again, so that it hears nothing of the
    # deletions. At the second, the API server forgets that history: it can but call the operator's version too old.
    operator.process.signal(signal.SIGSTOP)
    control_plane.restart_api_server()
    kube.delete("statefulsets", "arena")
    kube.delete("podlinks", "gone")
    eventually(lambda: len(kube.list("pods")), 2)
    control_plane.restart_api_server()
    operator.process.signal(signal.SIGCONT)

    eventually(lambda: wire.service("arena"), ({}, None), timeout=60)
    eventually(lambda: kube.get("podlinks", "gone"), None, timeout=60)
    eventually(lambda: kube.report("in-arena"), ("Released", "PodLost", None), timeout=60)
    assert wire.link("gone") == wire.link("in-arena", "arena") == NO_LINK
    await_reaction(kube, wire, operator, "after")
