"""States are what gateways in any language act upon: the same object always gives the same one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlink.domain.states import PodState, pod_state

READY = {"type": "Ready", "status": "True"}
UNREADY = {"type": "Ready", "status": "False"}


def pod(phase: str | None = "Running", *conditions: dict[str, str], **metadata: Any) -> dict[str, Any]:
    status: dict[str, Any] = {"conditions": list(conditions)}
    if phase is not None:
        status["phase"] = phase
    return {"metadata": {"name": "lobby-0", **metadata}, "status": status}


def node_lost(*conditions: dict[str, str]) -> dict[str, Any]:
    return {"metadata": {}, "status": {"phase": "Running", "reason": "NodeLost", "conditions": list(conditions)}}


DELETED = {"deletionTimestamp": "2024-05-01T12:00:00Z"}
DRAINING_LABEL = {"labels": {"podlink.io/draining": "true"}}
DRAINING_ANNOTATION = {"annotations": {"podlink.io/draining": "true"}}


@pytest.mark.parametrize(
    ("body", "state"),
    [
        pytest.param(pod("Running", READY, **DELETED), PodState.TERMINATING, id="deleted while Ready"),
        pytest.param(pod("Failed", **DELETED), PodState.TERMINATING, id="deleted after it failed"),
        pytest.param(pod("Running", **DELETED, **DRAINING_LABEL), PodState.TERMINATING, id="deleted while draining"),
        pytest.param(pod("Failed", UNREADY), PodState.FAILED, id="failed"),
        pytest.param(pod("Failed", **DRAINING_LABEL), PodState.FAILED, id="failed while draining"),
        pytest.param(pod("Succeeded", UNREADY), PodState.SUCCEEDED, id="ran to its end"),
        pytest.param(pod("Running", READY, **DRAINING_LABEL), PodState.DRAINING, id="draining by label"),
        pytest.param(pod("Running", READY, **DRAINING_ANNOTATION), PodState.DRAINING, id="draining by annotation"),
        pytest.param(
            pod("Running", READY, labels={"podlink.io/draining": "false"}, **DRAINING_ANNOTATION),
            PodState.DRAINING,
            id="draining by annotation, not by label",
        ),
        pytest.param(pod("Pending", **DRAINING_LABEL), PodState.DRAINING, id="draining before it runs"),
        pytest.param(
            pod("Running", READY, labels={"podlink.io/draining": "false"}), PodState.READY, id="draining: false"
        ),
        pytest.param(
            pod("Running", READY, labels={"podlink.io/draining": "True"}), PodState.READY, id="draining: True, not true"
        ),
        pytest.param(pod("Running", READY), PodState.READY, id="Ready"),
        pytest.param(
            pod("Running", {"type": "ContainersReady", "status": "False"}, READY), PodState.READY, id="Ready comes last"
        ),
        pytest.param(pod("Running", UNREADY), PodState.NOT_READY, id="running"),
        pytest.param(
            pod("Running", {"type": "ContainersReady", "status": "True"}, UNREADY),
            PodState.NOT_READY,
            id="a readiness gate is closed",
        ),
        pytest.param(pod("Running"), PodState.NOT_READY, id="running, without conditions"),
        pytest.param(
            pod("Running", {"type": "Ready", "status": "Unknown"}), PodState.NOT_READY, id="readiness is not known"
        ),
        pytest.param(pod("Unknown", UNREADY), PodState.NOT_READY, id="phase Unknown"),
        pytest.param(pod("Unknown", READY), PodState.NOT_READY, id="phase Unknown, Ready by its last word"),
        pytest.param(node_lost(UNREADY), PodState.NOT_READY, id="node lost"),
        pytest.param(node_lost(READY), PodState.NOT_READY, id="node lost, Ready by its last word"),
        pytest.param(pod("Pending", UNREADY), PodState.PENDING, id="pending"),
        pytest.param(pod(None), PodState.PENDING, id="just created"),
    ],
)
def test_pod_state(body: dict[str, Any], state: PodState) -> None:
    assert pod_state(body) is state


@pytest.mark.parametrize(
    "body",
    [
        {"metadata": {"name": "lobby-0"}},
        {"metadata": {"name": "lobby-0", "labels": None, "annotations": None}, "status": None},
        {"metadata": {"name": "lobby-0", "deletionTimestamp": None}, "status": {"phase": None, "conditions": None}},
        {"metadata": {"name": "lobby-0"}, "status": {}},
    ],
    ids=["no status", "null metadata and status", "null phase and conditions", "empty status"],
)
def test_pod_that_says_next_to_nothing_is_pending(body: dict[str, Any]) -> None:
    assert pod_state(body) is PodState.PENDING


@given(
    deleted=st.booleans(),
    phase=st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown"]),
    draining=st.booleans(),
    ready=st.booleans(),
)
def test_only_a_running_pod_that_is_ready_and_stays_is_routable(
    *, deleted: bool, phase: str, draining: bool, ready: bool
) -> None:
    metadata = (DELETED if deleted else {}) | (DRAINING_LABEL if draining else {})
    body = pod(phase, READY if ready else UNREADY, **metadata)
    routable = ready and not deleted and not draining and phase in ("Pending", "Running")
    assert (pod_state(body) is PodState.READY) is routable
