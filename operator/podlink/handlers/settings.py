"""Kopf's settings: no peering, no storage in the objects, short waits, and LISTs in pages."""

from typing import Any

import kopf


class _NoDiff(kopf.DiffBaseStorage):
    """Kopf compares every object with its last handled state; raw event handlers have no use for the result."""

    def build(self, *, body: kopf.Body, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence({})

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Keep nothing."""


class _NoProgress(kopf.ProgressStorage):
    """Raw event handlers have no progress that outlives them."""

    def fetch(self, *, key: kopf.HandlerId, body: kopf.Body) -> kopf.ProgressRecord | None:
        return None

    def store(self, *, key: kopf.HandlerId, record: kopf.ProgressRecord, body: kopf.Body, patch: kopf.Patch) -> None:
        """Keep nothing."""

    def purge(self, *, key: kopf.HandlerId, body: kopf.Body, patch: kopf.Patch) -> None:
        """There is nothing to purge."""

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        """There is nothing to touch."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


def build_settings(pod_selector: str) -> kopf.OperatorSettings:
    """Return the settings of the watches."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = _NoDiff()
    settings.persistence.progress_storage = _NoProgress()
    # Each object's worker lives that long after its last event; the default of 5 s keeps thousands alive in a burst.
    settings.queueing.idle_timeout = 0.1
    settings.scanning.disabled = True
    settings.watching.chunk_size = 500
    settings.watching.connect_timeout = 10
    # The server ends each watch after that; a proxy on the way that drops idle ones is found out no later.
    settings.watching.server_timeout = 300
    settings.networking.connect_timeout = 10
    settings.networking.request_timeout = 30
    # Kopf gives up after these and is started anew, with a sweep.
    settings.networking.error_backoffs = (0.2, 0.5, 1, 1, 2, 2)
    if pod_selector:
        settings.watching.label_selectors["", "v1", "pods"] = pod_selector
    return settings
