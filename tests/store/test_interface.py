"""Both executors have the promised methods, with the promised signatures, and each says what it does."""

from __future__ import annotations

import inspect

import pytest

import podlink
from podlink import sync

SET = "persist_seconds: int = -1"
REMOVE = "persist_seconds: int = 0"
PODS = "pods: collections.abc.Mapping[str, int]"
UIDS = "uids: collections.abc.Iterable[str]"
VERSION = "version: str | int | None = None"

SIGNATURES = {
    "set_service_state": f"(namespace: str, service: str, pod_id: int, state: str, *, {VERSION}) -> bool",
    "get_service_state": "(namespace: str, service: str) -> dict[int, str]",
    "get_service": "(namespace: str, service: str) -> podlink.store.operations.services.Service",
    "set_workload_state": f"(namespace: str, service: str, state: str, *, {VERSION}) -> bool",
    "get_workload_state": "(namespace: str, service: str) -> str | None",
    "get_workload_states": "(namespace: str, services: collections.abc.Iterable[str]) -> dict[str, str]",
    "set_linked_pod": f"(namespace: str, uid: str, service: str, pod_id: int, *, {SET}) -> int | None",
    "try_set_linked_pod": f"(namespace: str, uid: str, service: str, pod_id: int, *, {SET},"
    " expected: int | None = None) -> tuple[bool, int]",
    "set_linked_pod_if_absent": f"(namespace: str, uid: str, service: str, pod_id: int, *, {SET}) -> int",
    "compute_linked_pod_if_absent": f"(namespace: str, uid: str, service: str, *, {SET}) -> int | None",
    "get_linked_pod": "(namespace: str, uid: str, service: str) -> int | None",
    "get_linked_pod_if_persist": "(namespace: str, uid: str, service: str) -> int | None",
    "get_linked_pods": "(namespace: str, uids: collections.abc.Iterable[str], service: str) -> dict[int, list[str]]",
    "remove_linked_pod": f"(namespace: str, uid: str, service: str, *, {REMOVE}) -> bool",
    "remove_linked_pod_with_id": f"(namespace: str, uid: str, service: str, pod_id: int, *, {REMOVE}) -> bool",
    "set_linked_pods": f"(namespace: str, {PODS}, service: str, *, {SET}) -> dict[str, int | None]",
    "try_set_linked_pods": f"(namespace: str, {PODS}, service: str, *, {SET},"
    " expected: collections.abc.Mapping[str, int] | None = None) -> dict[str, tuple[bool, int]]",
    "set_linked_pods_if_absent": f"(namespace: str, {PODS}, service: str, *, {SET}) -> dict[str, int]",
    "compute_linked_pods_if_absent": f"(namespace: str, {UIDS}, service: str, *, {SET}) -> dict[str, int | None]",
    "remove_linked_pods": f"(namespace: str, {UIDS}, service: str, *, {REMOVE}) -> dict[str, bool]",
    "remove_linked_pods_with_id": f"(namespace: str, {PODS}, service: str, *, {REMOVE}) -> dict[str, bool]",
    "get_linked_services": "(namespace: str, uid: str) -> dict[str, int]",
}


@pytest.mark.parametrize("executor", [podlink.StatefulExecutor, sync.StatefulExecutor])
@pytest.mark.parametrize("name", SIGNATURES)
def test_method(executor: type, name: str) -> None:
    method = getattr(executor, name)
    signature = inspect.signature(method)
    (this, *arguments) = signature.parameters.values()
    assert this.name == "self"
    assert str(signature.replace(parameters=arguments)) == SIGNATURES[name]
    assert method.__name__ == name
    assert "Returns:" in method.__doc__


def test_asyncio_methods_are_coroutine_functions() -> None:
    for name in SIGNATURES:
        assert inspect.iscoroutinefunction(getattr(podlink.StatefulExecutor, name))
        assert not inspect.iscoroutinefunction(getattr(sync.StatefulExecutor, name))


def test_what_the_package_exports() -> None:
    assert set(podlink.__all__) == {
        "InvalidArgument",
        "NotReplicated",
        "PartialFailure",
        "PodLinkError",
        "RedisUnavailable",
        "ScriptError",
        "Service",
        "StatefulExecutor",
        "WrongEventLoop",
        "__version__",
    }
    assert all(issubclass(error, podlink.PodLinkError) for error in (podlink.InvalidArgument, podlink.RedisUnavailable))
    assert issubclass(podlink.ScriptError, podlink.PodLinkError)
    assert podlink.__version__[0].isdigit()
