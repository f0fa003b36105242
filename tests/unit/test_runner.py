"""Kopf that does not come to its end, because its watches wait for one another: the supervisor is told, and it ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from podlink.handlers import runner

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import pytest


async def test_watches_that_wait_for_ever_are_ended_and_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_END_SECONDS", 0.1)
    told: list[str] = []

    async def main() -> None:
        guard = asyncio.create_task(runner._see_to_the_end(told.append))
        failed = asyncio.create_task(asyncio.sleep(0.1), name=runner._WATCHING)
        hangs = asyncio.create_task(asyncio.Event().wait())
        await asyncio.wait([guard, failed, hangs])

    # In a loop of its own, as Kopf's.
    await asyncio.to_thread(_run, main)
    assert told == ["a watch failed, and Kopf did not end by itself"]


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def alone() -> None:
        working = asyncio.create_task(main())
        await asyncio.wait([working])

    try:
        asyncio.run(alone())
    except asyncio.CancelledError:
        return
