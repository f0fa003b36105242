"""Earlier versions and this one share a Redis: each gets from the other's data what it would get from its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.recording import RECORDINGS, left_in, plain

if TYPE_CHECKING:
    from pathlib import Path

    import redis

    from store.harness import Awaited


def replay(client: redis.Redis, recording: Path, commands: list[list[str]]) -> list[Any]:
    """Send what a version sent; return the replies."""
    replies = []
    for verb, name, *others in commands:
        what = (recording / "scripts" / f"{name}.lua").read_text() if verb == "EVAL" else name
        replies.append(plain(client.execute_command(verb, what, *others)))
    return replies


@pytest.mark.only_on("valkey", "redis", reason="the data is the same behind Sentinels and in a Cluster")
@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.name)
@pytest.mark.parametrize("turn", [0, 1], ids=["older first", "newer first"])
async def test_versions_share_a_redis(executor: Awaited, raw: redis.Redis, recording: Path, turn: int) -> None:
    recorded = json.loads((recording / "recording.json").read_text())
    for number, call in enumerate(recorded["calls"]):
        if number % 2 == turn:
            assert replay(raw, recording, call["sent"]) == call["replies"], call
        else:
            result = await getattr(executor, call["method"])(**call["arguments"])
            assert plain(result) == call["result"], call
    assert left_in(raw, list(recorded["left"])) == recorded["left"]
