"""Whatever is passed is refused with a clear error before any I/O, or stored and read back exactly.

That nothing was sent shows at an address where nobody listens: what is refused raises `InvalidArgument`, and what is
not raises `RedisUnavailable`.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from podlink import InvalidArgument, RedisUnavailable, StatefulExecutor, sync
from podlink.domain.keys import LAST_POD_ID, LAST_SECONDS
from podlink.store import operations
from store.harness import Topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

NOBODY = "redis://127.0.0.1:1/0"
METHODS = sorted(name for name in vars(sync.StatefulExecutor) if name in operations.__all__)

NAN, INFINITE = float("nan"), float("inf")
NO_TEXT = [None, 0, 7, True, NAN, b"bytes", ["list"], {"a": 1}, object()]
NO_NAME = ["", "\x00", "a\nb", "a\tb", "{", "a}b", "\x7f", "\x9f", "\ud800", "a\udfff", *NO_TEXT]
NO_NUMBER = [2**31, 2**63, 10**400, -2, -(2**70), True, False, NAN, INFINITE, 1.0, "0", b"1", None, [], {}]

GOOD: dict[str, Any] = {
    "namespace": "games",
    "uid": "ann",
    "service": "lobby",
    "pod_id": 0,
    "state": "Ready",
    "version": "7",
    "uids": ["ann", "bob"],
    "services": ["lobby", "arena"],
    "pods": {"ann": 0, "bob": LAST_POD_ID},
}
"""What each argument may be; those left out have a default."""

BAD: dict[str, list[Any]] = {
    "namespace": ["a:b", *NO_NAME],
    "uid": NO_NAME,
    "service": NO_NAME,
    "pod_id": [-1, *NO_NUMBER],
    "state": ["Rea\ndy", "\x00", "\x7f", "\ud800", *NO_TEXT],
    "version": ["", "1.5", "-1", " 1", "1\n", "\u0663", -1, True, 1.0, NAN, INFINITE, b"1", []],
    "uids": ["ann", b"ann", None, 7, NAN, *([name] for name in NO_NAME), *(["ann", name] for name in NO_NAME)],
    "services": ["lobby", b"lobby", None, 7, NAN, *(["lobby", name] for name in NO_NAME)],
    "pods": [None, 7, "ann", ["ann"], [("ann", 1)], *({"ann": 0, "bob": pod} for pod in [-1, *NO_NUMBER])]
    + [{"ann": 0, name: 1} for name in NO_NAME if isinstance(name, str)],
}
NO_LIFE = [0, *NO_NUMBER]
NO_WINDOW = [-1, *NO_NUMBER]
NO_EXPECTED = [pod for pod in [-1, *NO_NUMBER] if pod is not None]
NO_EXPECTED_OF_MANY = [0, 7, False, "", "ann", [], NAN, {"ann": -1}, {"ann": None}, {"ann": True}, {"": 1}, {"a\nb": 1}]


def wrong_values(method: str, argument: str) -> list[Any]:
    if argument == "persist_seconds":
        return NO_WINDOW if method.startswith("remove") else NO_LIFE
    if argument == "expected":
        return NO_EXPECTED_OF_MANY if method.endswith("pods") else NO_EXPECTED
    return BAD[argument]


def arguments_of(method: str) -> list[str]:
    return [name for name in inspect.signature(getattr(sync.StatefulExecutor, method)).parameters if name != "self"]


def right_values(method: str) -> dict[str, Any]:
    return {name: GOOD[name] for name in arguments_of(method) if name in GOOD}


@pytest.fixture(scope="module", params=["async", "blocking"])
def call(request: pytest.FixtureRequest) -> Iterator[Callable[[str, dict[str, Any]], Any]]:
    """Calls a method of an executor that cannot reach its server."""
    if request.param == "blocking":
        with sync.StatefulExecutor.from_url(NOBODY) as blocking:
            yield lambda method, arguments: getattr(blocking, method)(**arguments)
        return
    with asyncio.Runner() as runner:
        executor = StatefulExecutor.from_url(NOBODY)

        async def run(method: str, arguments: dict[str, Any]) -> Any:
            return await getattr(executor, method)(**arguments)

        yield lambda method, arguments: runner.run(run(method, arguments))
        runner.run(executor.aclose())


def test_all_methods_are_here() -> None:
    assert len(METHODS) == 22
    assert all(callable(getattr(StatefulExecutor, method)) for method in METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_right_is_sent(call: Callable[[str, dict[str, Any]], Any], method: str) -> None:
    with pytest.raises(RedisUnavailable):
        call(method, right_values(method))


@pytest.mark.parametrize("method", METHODS)
def test_what_is_wrong_is_refused_before_anything_is_sent(
    call: Callable[[str, dict[str, Any]], Any], method: str
) -> None:
    for argument in arguments_of(method):
        for wrong in wrong_values(method, argument):
            with pytest.raises(InvalidArgument) as error:
                call(method, right_values(method) | {argument: wrong})
            assert error.value.argument == argument, wrong
            assert argument in str(error.value)
            assert len(str(error.value)) < 300


anything = st.text(st.characters(exclude_categories=()), max_size=30) | st.text(st.sampled_from("a{}:\n\x00\ud800 "))
long_ones = st.sampled_from(["u" * 100_000, "\N{SNOWMAN}" * 20_000, "u" * 50_000 + "}"])
numbers = (
    st.integers(0, LAST_POD_ID)
    | st.integers()
    | st.sampled_from([0, -1, 1, LAST_POD_ID, LAST_POD_ID + 1, LAST_SECONDS])
    | st.floats()
)
per_server = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["async", "blocking"])
def ask(request: pytest.FixtureRequest, server: Topology) -> Iterator[Callable[..., Any]]:
    """Calls a method of an executor, by name and position; returns None where it was refused."""
    with asyncio.Runner() as runner, sync.StatefulExecutor.from_url(server.url) as blocking:
        executor = StatefulExecutor.from_url(server.url) if request.param == "async" else blocking

        async def run(method: str, *arguments: Any, **named: Any) -> Any:
            told = getattr(executor, method)(*arguments, **named)
            return await told if inspect.isawaitable(told) else told

        yield lambda *arguments, **named: runner.run(run(*arguments, **named))
        if isinstance(executor, StatefulExecutor):
            runner.run(executor.aclose())


@pytest.mark.only_on("valkey", "redis", "cluster", reason="TLS and Sentinels carry the same bytes")
@per_server
@given(uid=anything | long_ones, pod=numbers, seconds=numbers)
def test_links_are_refused_or_come_back_exactly(
    ask: Callable[..., Any], raw: redis.Redis, uid: str, pod: Any, seconds: Any
) -> None:
    raw.flushall()
    try:
        told = ask("set_linked_pods", "games", {uid: pod}, "lobby", persist_seconds=seconds)
    except InvalidArgument:
        assert raw.keys() == []
        return
    assert told == {uid: None}
    assert ask("get_linked_pods", "games", [uid], "lobby") == {pod: [uid]}
    assert ask("get_linked_services", "games", uid) == {"lobby": pod}
    assert ask("get_linked_pod_if_persist", "games", uid, "lobby") == (pod if seconds == -1 else None)
    assert ask("try_set_linked_pods", "games", {uid: pod}, "lobby", persist_seconds=seconds) == {uid: (True, pod)}
    assert ask("compute_linked_pods_if_absent", "games", [uid], "lobby") == {uid: pod}
    left = raw.ttl(f"sf:{{games:lk:{uid}}}lobby")
    assert left == -1 if seconds == -1 else seconds - 60 <= left <= seconds
    assert ask("get_service", "games", "lobby").loads == {pod: 1}
    assert ask("remove_linked_pods_with_id", "games", {uid: pod}, "lobby") == {uid: True}
    assert raw.keys() == []


@pytest.mark.only_on("valkey", "redis", "cluster", reason="TLS and Sentinels carry the same bytes")
@per_server
@given(service=anything, pod=numbers, state=anything, version=st.integers() | anything)
def test_states_are_refused_or_come_back_exactly(
    ask: Callable[..., Any], raw: redis.Redis, service: str, pod: Any, state: str, version: Any
) -> None:
    raw.flushall()
    try:
        assert ask("set_service_state", "games", service, pod, state, version=version) is True
        assert ask("set_workload_state", "games", service, state, version=version) is True
    except InvalidArgument:
        assert raw.keys() == []
        return
    assert ask("get_service_state", "games", service) == ({pod: state} if state else {})
    assert ask("get_workload_states", "games", [service]) == ({service: state} if state else {})
    if state:
        assert ask("set_service_state", "games", service, pod, state + "!", version=int(version)) is True
        assert ask("get_service", "games", service).states == {pod: state + "!"}
