"""A script that is called with a wrong argument answers an error that names script and argument, and writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ResponseError

from podlink.store.operations import scripts
from store.harness import LINK, LINKS, STATE, SVC, Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

UID_KEYS = [LINK, LINKS]
STATE_KEYS = [STATE]

# Of each script: the keys and arguments that a client of another language sends.
RIGHT: dict[str, tuple[list[str], dict[str, str]]] = {
    "statefulSetLink": (UID_KEYS, {"svc": SVC, "podId": "1", "persist": "60"}),
    "statefulTrySetLink": (UID_KEYS, {"svc": SVC, "podId": "1", "persist": "60", "expected": "2"}),
    "statefulSetLinkIfAbsent": (UID_KEYS, {"svc": SVC, "podId": "1", "persist": "60"}),
    "statefulRemoveLink": (UID_KEYS, {"svc": SVC, "persist": "60"}),
    "statefulRemoveLinkWithId": (UID_KEYS, {"svc": SVC, "podId": "1", "persist": "60"}),
    "statefulComputeLinkIfAbsent": (UID_KEYS, {"svc": SVC, "persist": "60"}),
    "statefulSetState": (STATE_KEYS, {"podId": "1", "state": "Ready", "version": "7"}),
    "statefulGetServicePod": (STATE_KEYS, {"podId": "1", "link": LINK, "temporary": "", "taken": "2", "ends": "9"}),
    "statefulGetLinkIfPersist": (UID_KEYS, {}),
    "statefulGetLinkService": (UID_KEYS, {}),
    "statefulGetService": (STATE_KEYS, {}),
}
NO_NUMBERS = ("x", "-5", "01", "1.0", "+1", " 1", "1e3", "2147483648", "99999999999999999999")
WRONG = {
    "svc": ("",),
    "podId": NO_NUMBERS,
    "expected": (*NO_NUMBERS, "-1"),
    "persist": (*NO_NUMBERS, "", "abc"),
    "version": ("x", "-5", "1.0", "1e3"),
    "taken": NO_NUMBERS,
    "ends": ("x", "-5", "1.0", "1e3"),
}
REMOVALS = ("statefulRemoveLink", "statefulRemoveLinkWithId")


def wrong_calls() -> Iterator[tuple[str, list[str], list[str], str]]:
    """A script, its keys and arguments, and the argument that is wrong."""
    for script, (keys, right) in RIGHT.items():
        yield script, [], list(right.values()), "KEYS"
        for number, name in enumerate(right):
            for value in WRONG.get(name, ()):
                yield script, keys, list((right | {name: value}).values()), name
            if name in ("svc", "podId", "persist", "state") and f"{name}?" not in _declared(script):
                yield script, keys, list(right.values())[:number], name
        if "persist" in right and script not in REMOVALS:
            yield script, keys, list((right | {"persist": "0"}).values()), "persist"


def _declared(script: str) -> tuple[str, ...]:
    return next(each.args for each in scripts.ALL if each.name == script)


@pytest.fixture
def linked(raw: redis.Redis, wire: Wire) -> dict[str, bytes]:
    """A link, a state and a load, and what all keys hold."""
    raw.set(LINK, "1")
    raw.hset(LINKS, SVC, "1")
    raw.hset(STATE, "1", "Ready")
    return contents(raw)


def contents(client: redis.Redis) -> dict[str, bytes]:
    return {key: client.dump(key) for key in client.scan_iter()}


def test_all_scripts_and_arguments_are_here() -> None:
    assert set(RIGHT) == {script.name for script in scripts.ALL}
    for script, (_, right) in RIGHT.items():
        assert [name.removesuffix("?") for name in _declared(script) if name != "book?"] == list(right)


@pytest.mark.only_on("valkey", "redis", reason="the scripts are the same on all, and raw keys of two slots are not")
@pytest.mark.usefixtures("leaves_orphans")
def test_wrong_arguments_are_refused(raw: redis.Redis, wire: Wire, linked: dict[str, bytes]) -> None:
    for script, keys, arguments, name in wrong_calls():
        with pytest.raises(ResponseError) as error:
            wire(script, keys, *arguments)
        assert f"{script}: {name} must" in str(error.value), (script, arguments)
        assert contents(raw) == linked, (script, arguments)


@pytest.mark.only_on("valkey", "redis", reason="the scripts are the same on all, and raw keys of two slots are not")
@pytest.mark.usefixtures("leaves_orphans")
def test_what_other_clients_send_is_taken(raw: redis.Redis, wire: Wire) -> None:
    for script, (keys, right) in RIGHT.items():
        raw.flushall()
        wire(script, keys, *right.values())
        for persist in ("-1", "1", "2147483647", *(("0",) if script in REMOVALS else ())):
            if "persist" in right:
                wire(script, keys, *(right | {"persist": persist}).values())
    # The workload's state has no podId, and nothing is expected where nobody says so.
    wire("statefulSetState", ["sf:{games:workload:lobby}"], "", "Available", "")
    wire("statefulTrySetLink", UID_KEYS, SVC, "0", "-1", "")
    assert raw.get(LINK) == "0"
