"""Picks made in a process of its own."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from podlink import sync
from store.harness import NS, SVC

if TYPE_CHECKING:
    from collections.abc import Sequence


def pick(url: str, uids: Sequence[str], alone: int) -> Counter[int | None]:
    """How often each pod was picked.

    Args:
        url: of the server.
        uids: that have no link.
        alone: so many of them call one by one, and the others all at once.
    """
    with sync.StatefulExecutor.from_url(url, timeout_seconds=60) as executor:
        picks = Counter(
            executor.compute_linked_pod_if_absent(NS, uid, SVC, persist_seconds=3600) for uid in uids[:alone]
        )
        picks.update(executor.compute_linked_pods_if_absent(NS, uids[alone:], SVC).values())
    return picks
