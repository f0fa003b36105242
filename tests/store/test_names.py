"""Any text that can be part of a key is stored and read back exactly; everything else is refused before any I/O."""

from __future__ import annotations

import re
from enum import Enum, IntEnum, StrEnum
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from podlink import InvalidArgument, StatefulExecutor, sync
from podlink.domain import keys
from podlink.store import operations
from sandbox.processes import until_async
from store.harness import LINK, LINKS, LOAD, NS, ONE_PRIMARY, STATE, SVC, UID, VERSIONS, Awaited, Topology

if TYPE_CHECKING:
    from collections.abc import Callable


REFUSED = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff{}]")

anything = st.text(alphabet=st.characters(), max_size=40)
names = anything.filter(lambda text: text and not REFUSED.search(text))
namespaces = names.filter(lambda text: ":" not in text)
refused_names = st.builds(
    lambda before, bad, after: before + bad + after,
    anything,
    st.sampled_from([*"{}\x00\n\t\x1f\x7f\x80\x9f\ud800\udfff"]),
    anything,
) | st.just("")

per_server = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


class NoConnection(redis.Connection):
    def connect(self) -> NoReturn:
        raise AssertionError("a refused argument must not reach the network")


@pytest.fixture(scope="module")
def offline() -> sync.StatefulExecutor:
    return sync.StatefulExecutor(redis.Redis(connection_pool=redis.ConnectionPool(NoConnection)))


@per_server
@given(namespace=namespaces, uid=names, service=names)
def test_names_come_back_exactly(server: Topology, raw: redis.Redis, namespace: str, uid: str, service: str) -> None:
    with sync.StatefulExecutor.from_url(server.url) as executor:
        executor.remove_linked_pod(namespace, uid, service)
        assert executor.set_linked_pod(namespace, uid, service, 3) is None
        assert executor.get_linked_pod(namespace, uid, service) == 3
        assert executor.get_linked_services(namespace, uid) == {service: 3}
        assert executor.get_linked_pods(namespace, [uid], service) == {3: [uid]}
        executor.set_workload_state(namespace, service, "Available")
        assert executor.get_workload_states(namespace, [service]) == {service: "Available"}
        stored = list(raw.scan_iter())
        assert (namespace, uid) in map(keys.uid_of_key, stored)
        assert (namespace, service) in map(keys.service_of_key, stored)
        raw.flushall()


@pytest.mark.only_on(*ONE_PRIMARY, reason="these keys are of two slots of a Cluster")
@per_server
@given(namespace=namespaces, uid=names, service=names)
def test_compute_finds_the_services_keys_from_two_keys(
    server: Topology, raw: redis.Redis, namespace: str, uid: str, service: str
) -> None:
    with sync.StatefulExecutor.from_url(server.url) as executor:
        executor.set_service_state(namespace, service, 5, "Ready")
        full = operations.compute_linked_pod_if_absent(namespace, uid, service)
        script = full.script
        assert script is not None
        raw.script_load(script.text)
        assert raw.evalsha(script.sha1, 2, *full.keys[:2], service, "-1") == "5"
        assert executor.get_service(namespace, service).loads == {5: 1}
        raw.flushall()


CALLS: list[Callable[[Any, str, str, str], Any]] = [
    lambda to, ns, uid, svc: to.set_service_state(ns, svc, 0, "Ready"),
    lambda to, ns, uid, svc: to.get_service_state(ns, svc),
    lambda to, ns, uid, svc: to.get_service(ns, svc),
    lambda to, ns, uid, svc: to.set_workload_state(ns, svc, "Available"),
    lambda to, ns, uid, svc: to.get_workload_state(ns, svc),
    lambda to, ns, uid, svc: to.get_workload_states(ns, ["fine", svc]),
    lambda to, ns, uid, svc: to.set_linked_pod(ns, uid, svc, 0),
    lambda to, ns, uid, svc: to.try_set_linked_pod(ns, uid, svc, 0),
    lambda to, ns, uid, svc: to.set_linked_pod_if_absent(ns, uid, svc, 0),
    lambda to, ns, uid, svc: to.compute_linked_pod_if_absent(ns, uid, svc),
    lambda to, ns, uid, svc: to.get_linked_pod(ns, uid, svc),
    lambda to, ns, uid, svc: to.get_linked_pod_if_persist(ns, uid, svc),
    lambda to, ns, uid, svc: to.get_linked_pods(ns, ["fine", uid], svc),
    lambda to, ns, uid, svc: to.remove_linked_pod(ns, uid, svc),
    lambda to, ns, uid, svc: to.remove_linked_pod_with_id(ns, uid, svc, 0),
    lambda to, ns, uid, svc: to.run(operations.link_ttl(ns, uid, svc)),
    lambda to, ns, uid, svc: to.run(operations.listed_pod(ns, uid, svc)),
    lambda to, ns, uid, svc: to.run(operations.get_state_versions(ns, svc)),
    lambda to, ns, uid, svc: to.run(operations.get_workload_version(ns, svc)),
    lambda to, ns, uid, svc: to.run(operations.reserve_service_pod(ns, svc)),
    lambda to, ns, uid, svc: to.run(operations.release_service_pod(ns, svc, 0)),
]


@given(bad=refused_names)
def test_refused_names_never_reach_the_network(offline: sync.StatefulExecutor, bad: str) -> None:
    for call in CALLS:
        for arguments in ((bad, UID, SVC), (NS, UID, bad)):
            with pytest.raises(InvalidArgument, match=r"must be a non-empty str without .*got "):
                call(offline, *arguments)
    for call in (*CALLS[6:15], lambda to, ns, uid, svc: to.get_linked_services(ns, uid)):
        with pytest.raises(InvalidArgument) as error:
            call(offline, NS, bad, SVC)
        assert error.value.argument in {"uid", "uids"}


@given(before=namespaces, after=namespaces)
def test_namespace_with_a_colon_is_refused(offline: sync.StatefulExecutor, before: str, after: str) -> None:
    with pytest.raises(InvalidArgument, match="namespace must be a non-empty str without a colon"):
        offline.get_linked_pod(f"{before}:{after}", UID, SVC)


@pytest.mark.parametrize("bad", [None, 7, b"bytes", ["list"]])
def test_what_is_no_str_is_refused(offline: sync.StatefulExecutor, bad: Any) -> None:
    for call in CALLS:
        with pytest.raises(InvalidArgument):
            call(offline, bad, UID, SVC)
        with pytest.raises(InvalidArgument):
            call(offline, NS, UID, bad)


class Plain(str, Enum):  # noqa: UP042 - a StrEnum formats as its value, and this one as its name
    NS, UID, SVC = NS, UID, SVC


class Modern(StrEnum):
    NS, UID, SVC = NS, UID, SVC


class Own(str):
    """A str that looks like another one to whoever asks it."""

    __slots__ = ()

    def __str__(self) -> str:
        return "another"

    __format__ = object.__format__
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)


class Number(IntEnum):
    POD, SECONDS = 2, 60


@pytest.mark.parametrize(
    "names",
    [(Plain.NS, Plain.UID, Plain.SVC), (Modern.NS, Modern.UID, Modern.SVC), (Own(NS), Own(UID), Own(SVC))],
    ids=["str, Enum", "StrEnum", "subclass"],
)
@pytest.mark.only_on("valkey", "cluster", reason="names are checked before it matters who is connected to")
async def test_subclasses_of_str_and_int_are_taken_for_what_they_hold(
    executor: Awaited, raw: redis.Redis, names: tuple[str, str, str]
) -> None:
    namespace, uid, service = names
    await executor.set_service_state(namespace, service, Number.POD, Modern.SVC, version=Number.POD)
    assert await executor.set_linked_pod(namespace, uid, service, Number.POD, persist_seconds=Number.SECONDS) is None
    assert await executor.try_set_linked_pod(*names, Number.POD, expected=Number.POD) == (True, 2)
    assert await executor.set_linked_pods(namespace, {uid: Number.POD}, service) == {UID: 2}
    assert await executor.get_linked_pod(*names) == await executor.get_linked_pod(NS, UID, SVC) == 2
    assert await executor.get_linked_pods(namespace, [uid], service) == {2: [UID]}
    assert await executor.get_linked_services(namespace, uid) == {SVC: 2}
    assert await executor.get_service_state(namespace, service) == {2: SVC}
    assert set(raw.keys()) == {LINK, LINKS, STATE, LOAD, VERSIONS}
    assert await executor.remove_linked_pod(*names, persist_seconds=Number.SECONDS) is True
    await executor.remove_linked_pod(*names)


@pytest.mark.only_on("valkey", reason="the cache is of the client")
@pytest.mark.usefixtures("leaves_orphans")
async def test_the_cache_takes_subclasses_of_str_for_what_they_hold(server: Topology, raw: redis.Redis) -> None:
    async with StatefulExecutor.from_url(server.url, cache=True) as executor:
        await executor.set_linked_pod(NS, UID, SVC, 1)
        for names in ((NS, UID, SVC), (Plain.NS, Plain.UID, Plain.SVC), (Own(NS), Own(UID), Own(SVC))):
            assert await executor.get_linked_pod(*names) == 1
        raw.set(LINK, "2")
        for names in ((NS, UID, SVC), (Plain.NS, Plain.UID, Plain.SVC), (Own(NS), Own(UID), Own(SVC))):

            async def moved(names: tuple[str, str, str] = names) -> bool:
                return await executor.get_linked_pod(*names) == 2

            await until_async(moved, 10, "the other client's write to show")


@pytest.mark.parametrize("pod_id", [-1, 2**31, True, "0", 1.0, None])
def test_what_is_no_ordinal_is_refused(offline: sync.StatefulExecutor, pod_id: Any) -> None:
    for call in (
        lambda: offline.set_linked_pod(NS, UID, SVC, pod_id),
        lambda: offline.try_set_linked_pod(NS, UID, SVC, pod_id),
        lambda: offline.set_linked_pod_if_absent(NS, UID, SVC, pod_id),
        lambda: offline.remove_linked_pod_with_id(NS, UID, SVC, pod_id),
        lambda: offline.set_service_state(NS, SVC, pod_id, "Ready"),
        lambda: offline.run(operations.release_service_pod(NS, SVC, pod_id)),
    ):
        with pytest.raises(InvalidArgument, match="pod_id must be an int from 0 to 2147483647") as error:
            call()
        assert error.value.argument == "pod_id"
    if pod_id is not None:
        with pytest.raises(InvalidArgument) as error:
            offline.try_set_linked_pod(NS, UID, SVC, 0, expected=pod_id)
        assert error.value.argument == "expected"


@pytest.mark.parametrize("seconds", [0, -2, 2**31, True, "60", 1.5, None])
def test_what_is_no_time_to_live_is_refused(offline: sync.StatefulExecutor, seconds: Any) -> None:
    for call in (
        lambda: offline.set_linked_pod(NS, UID, SVC, 0, persist_seconds=seconds),
        lambda: offline.try_set_linked_pod(NS, UID, SVC, 0, persist_seconds=seconds),
        lambda: offline.set_linked_pod_if_absent(NS, UID, SVC, 0, persist_seconds=seconds),
        lambda: offline.compute_linked_pod_if_absent(NS, UID, SVC, persist_seconds=seconds),
    ):
        with pytest.raises(InvalidArgument, match="persist_seconds must be -1"):
            call()


@pytest.mark.parametrize("seconds", [-1, 2**31, True, "60", 1.5, None])
def test_what_is_no_reconnect_window_is_refused(offline: sync.StatefulExecutor, seconds: Any) -> None:
    for call in (
        lambda: offline.remove_linked_pod(NS, UID, SVC, persist_seconds=seconds),
        lambda: offline.remove_linked_pod_with_id(NS, UID, SVC, 0, persist_seconds=seconds),
    ):
        with pytest.raises(InvalidArgument, match="persist_seconds of a removal must be 0"):
            call()


@pytest.mark.parametrize("version", ["", "1.5", "-1", "1e9", "abc", " 1", "1\n", "\u0663", -1, True, 1.0, b"1"])
def test_what_is_no_resource_version_is_refused(offline: sync.StatefulExecutor, version: Any) -> None:
    for call in (
        lambda: offline.set_service_state(NS, SVC, 0, "Ready", version=version),
        lambda: offline.set_workload_state(NS, SVC, "Available", version=version),
    ):
        with pytest.raises(InvalidArgument, match="version must be a string of decimal digits") as error:
            call()
        assert error.value.argument == "version"


@pytest.mark.parametrize("state", ["Rea\ndy", "\x00", "\ud800", None, 7, b"Ready"])
def test_what_is_no_state_is_refused(offline: sync.StatefulExecutor, state: Any) -> None:
    for call in (
        lambda: offline.set_service_state(NS, SVC, 0, state),
        lambda: offline.set_workload_state(NS, SVC, state),
    ):
        with pytest.raises(InvalidArgument) as error:
            call()
        assert error.value.argument == "state"


@pytest.mark.parametrize("many", ["player-42", b"player-42", None, 7, [b"player-42"], [["player-42"]]])
def test_what_is_no_list_of_names_is_refused(offline: sync.StatefulExecutor, many: Any) -> None:
    with pytest.raises(InvalidArgument) as error:
        offline.get_linked_pods(NS, many, SVC)
    assert error.value.argument == "uids"
    with pytest.raises(InvalidArgument) as error:
        offline.get_workload_states(NS, many)
    assert error.value.argument == "services"


async def test_asyncio_executor_refuses_when_awaited() -> None:
    async with StatefulExecutor.from_url("redis://127.0.0.1:1/0") as executor:
        with pytest.raises(InvalidArgument, match="uid must be"):
            await executor.get_linked_pod(NS, "", SVC)
