"""Pods and StatefulSets reduced to the facts that PodLink acts upon.

Everything the operator knows of the cluster goes through `read_pod` and `read_workload`: who an object is
(service and pod id), how it fares, and how fresh the knowledge is (resourceVersion).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from podlink.domain.errors import PodLinkError
from podlink.domain.keys import checked_service
from podlink.domain.states import PodState, WorkloadState, pod_state

SERVICE_LABEL = "podlink.io/service"
POD_ID_LABEL = "podlink.io/pod-id"
POD_INDEX_LABEL = "apps.kubernetes.io/pod-index"
POD_NAME_LABEL = "statefulset.kubernetes.io/pod-name"

MAX_POD_ID = 2**31 - 1
"""Kubernetes ordinals are int32."""

_ORDINAL = re.compile(r"(.+)-([0-9]+)\Z")
"""A name that a StatefulSet gives to its pods: its own name, and the ordinal."""

_RANDOM_NAMES = frozenset({"ReplicaSet", "ReplicationController", "DaemonSet", "Job"})
"""Kinds whose pods have a random suffix in their names, which may happen to be a number."""

_DIGITS = re.compile(r"[0-9]+\Z")


class UnidentifiedPodError(PodLinkError):
    """A pod of a service that has no usable pod id; the text says which label to set."""


class Pod(msgspec.Struct, frozen=True):
    """One pod of a service."""

    namespace: str
    name: str
    uid: str
    service: str
    pod_id: int
    state: PodState
    version: int
    """resourceVersion. Kubernetes lets clients compare the versions of one resource as integers."""
    owner: str | None
    """uid of the owning StatefulSet; None for a bare pod."""


class Workload(msgspec.Struct, frozen=True):
    """One StatefulSet."""

    namespace: str
    name: str
    uid: str
    service: str
    created: str
    """creationTimestamp: RFC 3339 in UTC, so that text order is time order."""
    first_id: int
    replicas: int
    ready_replicas: int
    terminating: bool
    progressing: bool
    version: int

    @property
    def ids(self) -> range:
        """The pod ids it is meant to run; none once it is being deleted."""
        return range(self.first_id, self.first_id + (0 if self.terminating else self.replicas))


def read_pod(pod: Mapping[str, Any]) -> Pod | None:
    """Read a pod object; None for a pod that belongs to no service.

    Raises:
        UnidentifiedPodError: the pod has a service, but nothing gives it an id.
        InvalidArgument: the service's name cannot be part of a key.
    """
    metadata = pod["metadata"]
    controller = _controller(metadata)
    owner = controller if controller.get("kind") == "StatefulSet" else {}
    labels = metadata.get("labels") or {}
    service = (
        labels.get(SERVICE_LABEL)
        or (pod.get("spec") or {}).get("subdomain")
        or owner.get("name")
        or _former_stateful_set(metadata["name"], labels)
    )
    if not service:
        return None
    service = checked_service(service)
    return Pod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        service=service,
        pod_id=_pod_id(metadata["name"], labels, random_name=controller.get("kind") in _RANDOM_NAMES),
        state=pod_state(pod),
        version=int(metadata["resourceVersion"]),
        owner=owner.get("uid"),
    )


def _controller(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the owner reference to the controller of an object. Empty if there is none."""
    references: Iterable[Mapping[str, Any]] = metadata.get("ownerReferences") or ()
    return next((reference for reference in references if reference.get("controller")), {})


def _former_stateful_set(name: str, labels: Mapping[str, str]) -> str | None:
    """Return the name of the StatefulSet that created a pod, also when it was deleted and the pod was not.

    `kubectl delete statefulset --cascade=orphan` removes the owner reference and leaves the labels.
    """
    made_by_one = labels.get(POD_NAME_LABEL) == name and _ORDINAL.match(name)
    return made_by_one[1] if made_by_one else None


def _pod_id(name: str, labels: Mapping[str, str], *, random_name: bool) -> int:
    for label in (POD_ID_LABEL, POD_INDEX_LABEL):
        if label in labels:
            text, source = labels[label], f"label {label}={labels[label]!r}"
            break
    else:
        ordinal = None if random_name else _ORDINAL.match(name)
        text, source = (ordinal[2] if ordinal else ""), "its name"
    if not _DIGITS.match(text) or int(text) > MAX_POD_ID:
        raise UnidentifiedPodError(
            f"{source} gives no pod id; set label {POD_ID_LABEL} to an integer from 0 to {MAX_POD_ID}"
        )
    return int(text)


def read_workload(stateful_set: Mapping[str, Any]) -> Workload:
    """Read a StatefulSet object.

    Raises:
        InvalidArgument: the service's name cannot be part of a key.
    """
    metadata, spec = stateful_set["metadata"], stateful_set["spec"]
    status = stateful_set.get("status") or {}
    template_labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    service = template_labels.get(SERVICE_LABEL) or spec.get("serviceName") or metadata["name"]
    service = checked_service(service)
    return Workload(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        service=service,
        created=metadata["creationTimestamp"],
        first_id=(spec.get("ordinals") or {}).get("start") or 0,
        replicas=_replicas(spec),
        ready_replicas=status.get("readyReplicas") or 0,
        terminating=bool(metadata.get("deletionTimestamp")),
        progressing=_progressing(metadata, spec, status),
        version=int(metadata["resourceVersion"]),
    )


def _replicas(spec: Mapping[str, Any]) -> int:
    replicas = spec.get("replicas")
    return 1 if replicas is None else int(replicas)


def _progressing(metadata: Mapping[str, Any], spec: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
    if (status.get("observedGeneration") or 0) < metadata.get("generation", 0):
        return True
    replicas = _replicas(spec)
    if (status.get("replicas") or 0) < replicas:
        return True
    strategy = spec.get("updateStrategy") or {}
    if strategy.get("type") == "OnDelete" or status.get("updateRevision") == status.get("currentRevision"):
        return False
    # The controller counts the partition from the first replica, whatever ordinals.start is.
    partition = (strategy.get("rollingUpdate") or {}).get("partition") or 0
    if partition == 0:
        return True  # it ends when the controller makes the new revision the current one
    return (status.get("updatedReplicas") or 0) < max(0, replicas - partition)


def workload_state(workloads: Iterable[Workload]) -> WorkloadState | None:
    """Return the state of the service that the StatefulSets make up together; None when there is none.

    A service is almost always one StatefulSet. Where several share it (with disjoint ids), their replicas are
    added up, and those on their way out count only when nothing else is left.
    """
    every = list(workloads)
    if not every:
        return None
    staying = [workload for workload in every if not workload.terminating]
    if not staying:
        return WorkloadState.TERMINATING
    wanted = sum(workload.replicas for workload in staying)
    ready = sum(workload.ready_replicas for workload in staying)
    if wanted == 0:
        return WorkloadState.SCALED_TO_ZERO
    if any(workload.progressing for workload in staying):
        return WorkloadState.PROGRESSING
    if ready >= wanted:
        return WorkloadState.AVAILABLE
    return WorkloadState.UNAVAILABLE if ready == 0 else WorkloadState.DEGRADED
