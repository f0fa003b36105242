"""Kubernetes Events: short news of an object for the people who run `kubectl describe`.

Events are the least of what the operator owes the API server, so they go out behind everything else: from a bounded
queue, one at a time. When it overflows, the oldest news are dropped and counted.
"""

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Literal
from uuid import uuid4

import msgspec

from podlink.cluster.client import ApiError, Cluster
from podlink.domain.errors import PodLinkError
from podlink.domain.podlinks import GROUP, KIND, VERSION, PodLink
from podlink.domain.workloads import Workload

logger = logging.getLogger(__name__)

_CAPACITY = 10_000

# The API server's own limits: characters of a name, bytes of UTF-8 of the other fields.
_NAME_CHARACTERS = 253
_FIELD_BYTES = 128
_NOTE_BYTES = 1024


class ObjectReference(msgspec.Struct, frozen=True, rename="camel"):
    """What an Event is about."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str

    @classmethod
    def of_podlink(cls, link: PodLink) -> "ObjectReference":
        """Refer to a PodLink."""
        return cls(f"{GROUP}/{VERSION}", KIND, link.namespace, link.name, link.uid)

    @classmethod
    def of_workload(cls, workload: Workload) -> "ObjectReference":
        """Refer to a StatefulSet."""
        return cls("apps/v1", "StatefulSet", workload.namespace, workload.name, workload.uid)


class EventRecorder:
    """Sends Events in the background; `record` never waits and never fails."""

    def __init__(self, cluster: Cluster, *, on_dropped: Callable[[], None]) -> None:
        self._cluster = cluster
        self._queue: deque[tuple[str, dict[str, object]]] = deque()
        self._filled = asyncio.Event()
        self._sending = asyncio.Lock()
        self._on_dropped = on_dropped
        self._instance = f"{socket.gethostname()}-{os.getpid()}"

    def record(
        self, regarding: ObjectReference, kind: Literal["Normal", "Warning"], reason: str, note: str, *, action: str
    ) -> None:
        """Queue one Event."""
        if len(self._queue) >= _CAPACITY:
            self._queue.popleft()
            self._on_dropped()
        body: dict[str, object] = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": _event_name(regarding.name), "namespace": regarding.namespace},
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": "podlink.io/operator",
            "reportingInstance": _cut(self._instance, _FIELD_BYTES),
            "action": _cut(action, _FIELD_BYTES),
            "reason": _cut(reason, _FIELD_BYTES),
            "regarding": msgspec.to_builtins(regarding),
            "note": _cut(note, _NOTE_BYTES),
            "type": kind,
        }
        self._queue.append((regarding.namespace, body))
        self._filled.set()

    async def run(self) -> None:
        """Send what is recorded, until cancelled."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            await self.drain()

    async def drain(self) -> None:
        """Send what is recorded by now."""
        # At the end this is called beside `run`, which must not send the same.
        async with self._sending:
            while self._queue:
                namespace, body = self._queue[0]
                try:
                    await self._cluster.create_event(namespace, body)
                except PodLinkError as error:
                    self._refused(namespace, error)
                self._sent(body)

    def _refused(self, namespace: str, error: PodLinkError) -> None:
        if isinstance(error, ApiError) and error.status == HTTPStatus.CONFLICT:
            return  # it was sent before, and the answer was lost
        # An Event is news, not state: what it tells is in the status too.
        self._on_dropped()
        # A namespace that is being deleted takes no Events, and the preflight names a missing right.
        expected = "is being terminated" in str(error) or getattr(error, "status", 0) == HTTPStatus.FORBIDDEN
        level = logging.DEBUG if expected else logging.WARNING
        logger.log(level, "event not sent: %s", error, extra={"namespace": namespace})

    def _sent(self, body: dict[str, object]) -> None:
        # Meanwhile, it may have been dropped as the oldest of too many.
        if self._queue and self._queue[0][1] is body:
            self._queue.popleft()


def _event_name(about: str) -> str:
    """Make a name of its own for an Event, which begins with that of the object it is about."""
    suffix = f".{uuid4().hex[:16]}"
    # Each part between dots has to end with a letter or a digit.
    return about[: _NAME_CHARACTERS - len(suffix)].rstrip("-.") + suffix


def _cut(text: str, size: int) -> str:
    """Return as many whole characters as fit into that many bytes of UTF-8."""
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore")
