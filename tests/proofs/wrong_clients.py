"""Executors that break the contract, each in a way that clients of Redis are known for; a check has to catch them."""

from __future__ import annotations

import time
from typing import Any, Final

from podlink import RedisUnavailable, sync
from podlink.domain.keys import PERMANENT


class ReadsThenWrites(sync.StatefulExecutor):
    """Looks at a link with one call, and sets it with another: in between, somebody else may have done the same."""

    def try_set_linked_pod(
        self,
        namespace: str,
        uid: str,
        service: str,
        pod_id: int,
        *,
        persist_seconds: int = PERMANENT,
        expected: int | None = None,
    ) -> tuple[bool, int]:
        linked = self.get_linked_pod_if_persist(namespace, uid, service)
        if linked is not None and linked not in {pod_id, expected}:
            return False, linked
        self.set_linked_pod(namespace, uid, service, pod_id, persist_seconds=persist_seconds)
        return True, pod_id


class DeletesWhatItRead(sync.StatefulExecutor):
    """Compares a link in one call and removes it in another, whatever it has become."""

    def remove_linked_pod_with_id(
        self, namespace: str, uid: str, service: str, pod_id: int, *, persist_seconds: int = 0
    ) -> bool:
        if self.get_linked_pod(namespace, uid, service) != pod_id:
            return False
        return self.remove_linked_pod(namespace, uid, service, persist_seconds=persist_seconds)


class Remembers(sync.StatefulExecutor):
    """Answers reads from what it read a moment ago."""

    _SECONDS: Final = 0.005

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._known: dict[str, tuple[float, int | None]] = {}

    def get_linked_pod(self, namespace: str, uid: str, service: str) -> int | None:
        read_at, pod = self._known.get(uid, (float("-inf"), None))
        if time.monotonic() - read_at > self._SECONDS:
            pod = super().get_linked_pod(namespace, uid, service)
            self._known[uid] = time.monotonic(), pod
        return pod


class SendsAgain(sync.StatefulExecutor):
    """Makes a call once more whose answer was lost, though it may have been applied."""

    def run_many(self, many: Any) -> list[Any]:
        results: list[Any] = super().run_many(many)
        lost = any(isinstance(result, RedisUnavailable) for result in results)
        return super().run_many(many) if lost else results


class DeniesEverything(sync.StatefulExecutor):
    """Says of every call without an answer that it was not applied."""

    def run_many(self, many: Any) -> list[Any]:
        results: list[Any] = super().run_many(many)
        return [
            RedisUnavailable(str(result), maybe_applied=False) if isinstance(result, RedisUnavailable) else result
            for result in results
        ]
