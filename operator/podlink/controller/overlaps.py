"""Reports StatefulSets that have the same ids of a service as an older one."""

import logging

from podlink.cluster.events import EventRecorder, ObjectReference
from podlink.domain.services import ServiceView
from podlink.domain.workloads import Workload

logger = logging.getLogger(__name__)


def tell_overlaps(recorder: EventRecorder, before: ServiceView | None, after: ServiceView) -> bool:
    """Report StatefulSets that are newly left out. Return whether the set of those left out has changed."""
    known = {younger.uid for younger, _ in before.rejected} if before is not None else set()
    for younger, older in after.rejected:
        if younger.uid not in known:
            note = _note(after.name, younger, older)
            recorder.record(ObjectReference.of_workload(younger), "Warning", "ServiceOverlap", note, action="Observe")
            logger.warning("StatefulSet %s/%s: %s", younger.namespace, younger.name, note)
    return known != {younger.uid for younger, _ in after.rejected}


def _note(service: str, younger: Workload, older: Workload) -> str:
    return (
        f"StatefulSet {older.name} is older and has ids {_ids(older.ids)} of service {service}, which overlap "
        f"{_ids(younger.ids)} of this one. PodLink writes nothing for this one. Give one of them another "
        "podlink.io/service label, serviceName or ordinals.start"
    )


def _ids(ids: range) -> str:
    return f"{ids.start} to {ids.stop - 1}" if len(ids) > 1 else str(ids.start)
