"""Where objects of the cluster come in, from watches and from LISTs alike.

An object that cannot be read is told of and left out; it never stops the others.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from podlink import tracing
from podlink.controller.reconciler import Reconciler
from podlink.controller.state_writer import StateWriter
from podlink.domain.errors import PodLinkError
from podlink.domain.inventory import Inventory
from podlink.domain.podlinks import PodLink, read_podlink
from podlink.domain.registry import PodLinks
from podlink.domain.workloads import Pod, Workload, read_pod, read_workload
from podlink.metrics import Metrics

logger = logging.getLogger(__name__)

Object = Mapping[str, Any]

DELETED = "DELETED"


class Intake:
    """Takes objects in and passes on whom their change concerns."""

    def __init__(
        self,
        inventory: Inventory,
        links: PodLinks,
        writer: StateWriter,
        reconciler: Reconciler,
        metrics: Metrics,
        *,
        on_relist: Callable[[str], None],
    ) -> None:
        self._inventory = inventory
        self._links = links
        self._writer = writer
        self._reconciler = reconciler
        self._metrics = metrics
        self._on_relist = on_relist

    def pod(self, event: str | None, body: Object) -> None:
        """Take in a watch event of a pod."""
        with _event("Pod", event, body):
            self._fact("Pod", event, body, self.read_pod)

    def workload(self, event: str | None, body: Object) -> None:
        """Take in a watch event of a StatefulSet."""
        with _event("StatefulSet", event, body):
            self._fact("StatefulSet", event, body, self.read_workload)

    def podlink(self, event: str | None, body: Object) -> None:
        """Take in a watch event of a PodLink."""
        with _event("PodLink", event, body):
            self._podlink(event, body)

    def _podlink(self, event: str | None, body: Object) -> None:
        metadata = body["metadata"]
        self._arrived("PodLink", event, metadata["namespace"])
        if event == DELETED:
            key = metadata["namespace"], metadata["name"]
            self._reconciler.look_at(self._links.forget(key, metadata["uid"], int(metadata["resourceVersion"])))
            return
        link = self.read_podlink(body)
        if link is not None:
            self._reconciler.look_at(self._links.observe(link))

    def _fact(
        self, kind: str, event: str | None, body: Object, read: Callable[[Object], Pod | Workload | None]
    ) -> None:
        self._arrived(kind, event, body["metadata"]["namespace"])
        fact = None if event == DELETED else read(body)
        if fact is not None:
            self._writer.mark(self._inventory.observe(fact))
        else:
            # Gone, or no longer of any service because its labels were edited.
            metadata = body["metadata"]
            self._writer.mark(self._inventory.forget(metadata["uid"], int(metadata["resourceVersion"])))

    def _arrived(self, kind: str, event: str | None, namespace: str) -> None:
        self._metrics.events.labels(kind).inc()
        if event is None:
            # Kopf lists when it starts, and again when a watch expired: what was deleted in between has no event.
            self._on_relist(namespace)

    def read_pod(self, body: Object) -> Pod | None:
        """Read a pod; None for one that PodLink cannot identify or that belongs to no service."""
        try:
            return read_pod(body)
        except PodLinkError as error:
            self._left_out("Pod", body, error)
            return None

    def read_workload(self, body: Object) -> Workload | None:
        """Read a StatefulSet; None for one whose service name cannot be part of a key."""
        try:
            return read_workload(body)
        except PodLinkError as error:
            self._left_out("StatefulSet", body, error)
            return None

    def _left_out(self, kind: str, body: Object, error: PodLinkError) -> None:
        self._metrics.unidentified.labels(kind).inc()
        metadata = body["metadata"]
        place = metadata["namespace"], metadata["name"]
        about = {"namespace": place[0], "object": f"{kind}/{place[1]}", "object_uid": metadata["uid"]}
        logger.warning("%s %s/%s is left out: %s", kind, *place, error, extra=about)

    def read_podlink(self, body: Object) -> PodLink | None:
        """Read a PodLink; None for one that the CRD of this version would have refused."""
        try:
            return read_podlink(body)
        except PodLinkError as error:
            self._left_out("PodLink", body, error)
            return None


def _event(kind: str, event: str | None, body: Object) -> AbstractContextManager[None]:
    """The span of an event, from which all work on its behalf goes on."""
    metadata = body["metadata"]
    about = {
        "namespace": metadata["namespace"],
        "object": f"{kind}/{metadata['name']}",
        "object_uid": metadata["uid"],
    }
    if kind == "PodLink":
        about["uid"] = str(body.get("spec", {}).get("uid", ""))
    return tracing.span("event", about=about, type=event or "LISTED")
