"""What this version sends to Redis, and its CRD, kept for the tests of later versions.

`python -m sandbox.recording` writes them. Each version that was released has a directory in tests/recordings: its CRD,
the texts of its scripts, and the calls of one tour of the executor with what they sent, what the server replied, what
they returned, and what was left in Redis.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import re
import shutil
import socket
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import hiredis

import podlink
from podlink.store.operations import scripts
from sandbox.cluster import CRD, REPOSITORY
from sandbox.redis_servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import redis

_DIRECTORY = REPOSITORY / "tests" / "recordings"

RECORDINGS = sorted(_DIRECTORY.iterdir())
"""The directory of each version that was released."""

_SERVICE = {"namespace": "games", "service": "lobby"}


def _call(method: str, **arguments: Any) -> tuple[str, dict[str, Any]]:
    return method, _SERVICE | arguments


TOUR = (
    _call("set_workload_state", state="Available", version="5"),
    _call("set_service_state", pod_id=0, state="Ready", version="10"),
    _call("set_service_state", pod_id=1, state="Ready", version="11"),
    _call("set_service_state", pod_id=2, state="NotReady", version="12"),
    _call("set_service_state", pod_id=0, state="Draining", version="9"),
    _call("set_linked_pod", uid="a", pod_id=0),
    _call("compute_linked_pod_if_absent", uid="b"),
    _call("compute_linked_pod_if_absent", uid="a", persist_seconds=600),
    _call("try_set_linked_pod", uid="a", pod_id=1),
    _call("try_set_linked_pod", uid="a", pod_id=1, expected=0),
    _call("set_linked_pod_if_absent", uid="a", pod_id=0),
    _call("set_linked_pod", uid="c", pod_id=0, persist_seconds=600),
    _call("get_linked_pod", uid="c"),
    _call("get_linked_pod_if_persist", uid="c"),
    _call("set_linked_pods", pods={"d": 0, "e": 1}),
    _call("set_linked_pod_if_absent", uid="g", pod_id=1, persist_seconds=600),
    _call("compute_linked_pods_if_absent", uids=["f"], persist_seconds=600),
    _call("get_linked_pods", uids=["a", "b", "c", "d", "e", "f", "nobody"]),
    _call("get_service"),
    _call("remove_linked_pod", uid="b", persist_seconds=600),
    _call("get_linked_pod", uid="b"),
    ("get_linked_services", {"namespace": "games", "uid": "b"}),
    ("get_linked_services", {"namespace": "games", "uid": "a"}),
    _call("remove_linked_pod_with_id", uid="d", pod_id=1),
    _call("remove_linked_pod_with_id", uid="d", pod_id=0),
    _call("remove_linked_pod", uid="e"),
    _call("try_set_linked_pods", pods={"a": 0, "c": 1}),
    _call("set_linked_pod", uid="g", pod_id=0),
    _call("set_service_state", pod_id=2, state="", version="13"),
    _call("get_service_state"),
    _call("get_service"),
    _call("get_workload_state"),
    ("get_workload_states", {"namespace": "games", "services": ["lobby", "chat"]}),
)
"""Method and arguments. No call picks among pods with equal loads, so each has one result."""


class Exchange(NamedTuple):
    """Commands and replies of one call."""

    sent: list[list[str]]
    replies: list[Any]


class Tap:
    """A TCP proxy in front of a server of the loopback interface, which keeps what passes; closed with the process."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._exchange = Exchange([], [])
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def take(self) -> Exchange:
        """Return what has passed since the last time."""
        taken, self._exchange = self._exchange, Exchange([], [])
        return taken

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self._target))
            for source, target, sends in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass_on, args=(source, target, sends), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, sends: bool) -> None:
        reader = hiredis.Reader()
        while data := source.recv(65536):
            reader.feed(data)
            while (message := reader.gets()) is not False:
                (self._exchange.sent if sends else self._exchange.replies).append(plain(message))
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def plain(value: Any) -> Any:
    """Return a result or a reply as JSON holds it, the same in both versions of Redis' protocol."""
    match value:
        case None | bool():
            return value
        case bytes():
            return value.decode()
        case dict():
            return [plain(each) for item in value.items() for each in item]
        case list() | tuple():
            return [plain(each) for each in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.astuple(value))
    return str(value)


def left_in(client: redis.Redis, keys: list[str]) -> dict[str, Any]:
    """Return what is in Redis under these keys, and whether it expires; no points in time."""
    read: dict[str, Callable[[str], Any]] = {
        "string": client.get,
        "hash": client.hgetall,
        "zset": lambda key: client.zrange(key, 0, -1),
    }
    return {key: [read[str(client.type(key))](key), client.pttl(key) > 0] for key in sorted(keys) if client.exists(key)}


async def record(directory: Path) -> None:
    """Write the recording of the installed version."""
    calls = []
    with RedisServer("valkey") as server:
        tap = Tap(server.port)
        url = re.sub(rf":{server.port}\b", f":{tap.port}", server.url)
        async with podlink.StatefulExecutor.from_url(url) as executor:
            # It sends the text of a script once, and then its digest.
            for method, arguments in TOUR:
                await getattr(executor, method)(**arguments)
            texts = _scripts_in(tap.take().sent)
            server.ask("FLUSHALL")
            for method, arguments in TOUR:
                result = plain(await getattr(executor, method)(**arguments))
                sent, replies = tap.take()
                assert len(sent) == len(replies), (method, sent, replies)
                calls.append(
                    {
                        "method": method,
                        "arguments": arguments,
                        "result": result,
                        "sent": [_with_name(command, texts) for command in sent],
                        "replies": replies,
                    }
                )
        with server.client() as client:
            left = left_in(client, client.keys("*"))
    (directory / "scripts").mkdir(parents=True, exist_ok=True)
    for name, text in texts.values():
        (directory / "scripts" / f"{name}.lua").write_text(text)
    shutil.copy(CRD, directory)
    lines = ",\n".join(map(json.dumps, calls))
    (directory / "recording.json").write_text(f'{{"calls": [\n{lines}\n],\n"left": {json.dumps(left, indent=0)}}}\n')


def _scripts_in(commands: list[list[str]]) -> dict[str, tuple[str, str]]:
    """Return the scripts that are sent as text: digest -> name and text."""
    names = {script.sha1: script.name for script in scripts.ALL}
    texts = [text for verb, text, *_ in commands if verb == "EVAL"]
    digests = [hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for text in texts]
    # One is made of others, and has no file.
    return {digest: (names.get(digest, "merged"), text) for digest, text in zip(digests, texts, strict=True)}


def _with_name(command: list[str], texts: dict[str, tuple[str, str]]) -> list[str]:
    """Name the script instead of its digest."""
    verb, digest, *others = command
    return ["EVAL", texts[digest][0], *others] if verb == "EVALSHA" else command


if __name__ == "__main__":
    asyncio.run(record(_DIRECTORY / podlink.__version__))
