"""The states of pods and workloads, read off the Kubernetes objects as they come from the API.

A state is what another process, in another language, acts upon ("route only to Ready"), so the rules are
first-match lists with no history: the same object always gives the same state.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

DRAINING = "podlink.io/draining"
"""Label or annotation that takes a pod out of routing while it goes on serving the users it has."""


class PodState(StrEnum):
    """What a pod is good for; only `READY` pods are routable."""

    TERMINATING = "Terminating"
    FAILED = "Failed"
    SUCCEEDED = "Succeeded"
    DRAINING = "Draining"
    READY = "Ready"
    NOT_READY = "NotReady"
    PENDING = "Pending"


class WorkloadState(StrEnum):
    """What a service as a whole is doing."""

    TERMINATING = "Terminating"
    SCALED_TO_ZERO = "ScaledToZero"
    PROGRESSING = "Progressing"
    AVAILABLE = "Available"
    UNAVAILABLE = "Unavailable"
    DEGRADED = "Degraded"


def pod_state(pod: Mapping[str, Any]) -> PodState:  # noqa: PLR0911 - one return for each rule
    """Return the state of a pod: the first rule that matches."""
    metadata = pod["metadata"]
    status = pod.get("status") or {}
    phase = status.get("phase")
    if metadata.get("deletionTimestamp"):
        return PodState.TERMINATING
    if phase == "Failed":
        return PodState.FAILED
    if phase == "Succeeded":
        return PodState.SUCCEEDED
    if any((metadata.get(where) or {}).get(DRAINING) == "true" for where in ("labels", "annotations")):
        return PodState.DRAINING
    if _node_lost(status):
        return PodState.NOT_READY
    if any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ()):
        return PodState.READY
    return PodState.NOT_READY if phase == "Running" else PodState.PENDING


def _node_lost(status: Mapping[str, Any]) -> bool:
    # A kubelet that stopped reporting leaves its pods with the conditions of its last word, so this
    # comes before Ready: https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-phase
    return status.get("phase") == "Unknown" or status.get("reason") == "NodeLost"
