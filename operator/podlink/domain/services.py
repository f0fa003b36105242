"""A service as PodLink sees it: the pods behind it, the ids it is meant to have, and who may speak for it."""

from collections.abc import Iterable, Sequence

import msgspec

from podlink.domain.states import PodState, WorkloadState
from podlink.domain.workloads import Pod, Workload, workload_state


class ServiceView(msgspec.Struct, frozen=True):
    """What is known of one service at one moment."""

    namespace: str
    name: str
    pods: dict[int, Pod]
    workloads: tuple[Workload, ...]
    """The StatefulSets that make up the service, oldest first."""
    rejected: tuple[tuple[Workload, Workload], ...] = ()
    """StatefulSets left out, each beside the older one whose ids it overlaps."""

    @property
    def exists(self) -> bool:
        """Whether anything in the cluster stands for the service."""
        return bool(self.pods or self.workloads)

    @property
    def state(self) -> WorkloadState | None:
        """The workload state; None when no StatefulSet is there."""
        return workload_state(self.workloads)

    @property
    def ready(self) -> list[int]:
        """Ids of the routable pods, ascending."""
        return sorted(pod_id for pod_id, pod in self.pods.items() if pod.state is PodState.READY)

    def expects(self, pod_id: int) -> bool:
        """Whether a StatefulSet is meant to run this id, be its pod there at the moment or not."""
        return any(pod_id in workload.ids for workload in self.workloads)

    def has(self, pod_id: int) -> bool:
        """Whether the pod is there to stay: a pod on its way out for good does not count."""
        pod = self.pods.get(pod_id)
        return pod is not None and (pod.state is not PodState.TERMINATING or self.expects(pod_id))

    def lost(self, pod_id: int) -> bool:
        """Whether the id is gone for good: its pod is gone and nothing will bring it back.

        A pod that is being deleted is not lost yet: its users are served until it is gone.
        """
        return pod_id not in self.pods and not self.expects(pod_id)

    def pod_name(self, pod_id: int) -> str:
        """The name of the pod with this id, also while it is being replaced."""
        pod = self.pods.get(pod_id)
        if pod is not None:
            return pod.name
        owner = next((workload for workload in self.workloads if pod_id in workload.ids), None)
        return f"{owner.name if owner else self.name}-{pod_id}"


def view_service(namespace: str, name: str, pods: Iterable[Pod], workloads: Sequence[Workload]) -> ServiceView:
    """Put a service together from all pods and StatefulSets that claim its name.

    Where ids of two StatefulSets overlap, the older one keeps the service; the younger is left out whole, with
    its pods.
    """
    accepted: list[Workload] = []
    rejected: list[tuple[Workload, Workload]] = []
    for workload in sorted(workloads, key=lambda w: (w.created, w.uid)):
        older = next((other for other in accepted if _overlap(workload.ids, other.ids)), None)
        if older is None:
            accepted.append(workload)
        else:
            rejected.append((workload, older))
    outsiders = {workload.uid for workload, _ in rejected}
    chosen: dict[int, Pod] = {}
    for pod in pods:
        if pod.owner in outsiders:
            continue
        rival = chosen.get(pod.pod_id)
        if rival is None or _precedence(pod) < _precedence(rival):
            chosen[pod.pod_id] = pod
    return ServiceView(namespace=namespace, name=name, pods=chosen, workloads=tuple(accepted), rejected=tuple(rejected))


def _overlap(one: range, other: range) -> bool:
    return max(one.start, other.start) < min(one.stop, other.stop)


def _precedence(pod: Pod) -> tuple[bool, bool, str]:
    # Two pods can claim one id through their labels: the one a StatefulSet stands for wins, then the one that stays.
    return (pod.owner is None, pod.state is PodState.TERMINATING, pod.uid)
