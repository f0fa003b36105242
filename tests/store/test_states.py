"""States of pods and workloads, and the fence that keeps stale writers out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ResponseError

from podlink import Service
from podlink.store import operations
from store.harness import NS, STATE, SVC, VERSIONS, WORKLOAD, WORKLOAD_VERSION, Awaited, Wire

if TYPE_CHECKING:
    import redis

TOMBSTONE_MILLISECONDS = 3600 * 1000


async def test_state_of_a_pod_is_a_field_other_clients_can_read(executor: Awaited, raw: redis.Redis) -> None:
    assert await executor.set_service_state(NS, SVC, 0, "Ready") is True
    assert await executor.set_service_state(NS, SVC, 11, "Pending") is True
    assert raw.hgetall(STATE) == {"0": "Ready", "11": "Pending"}
    assert await executor.get_service_state(NS, SVC) == {0: "Ready", 11: "Pending"}


async def test_states_written_by_another_client_are_read(executor: Awaited, raw: redis.Redis) -> None:
    raw.hset(STATE, mapping={"0": "Ready", "2": "Draining"})
    assert await executor.get_service_state(NS, SVC) == {0: "Ready", 2: "Draining"}


async def test_empty_state_removes_the_pod_and_the_last_one_the_key(executor: Awaited, raw: redis.Redis) -> None:
    await executor.set_service_state(NS, SVC, 0, "Ready")
    await executor.set_service_state(NS, SVC, 1, "Ready")
    assert await executor.set_service_state(NS, SVC, 0, "") is True
    assert raw.hgetall(STATE) == {"1": "Ready"}
    await executor.set_service_state(NS, SVC, 1, "")
    assert raw.keys() == []


async def test_a_service_nobody_knows_has_no_states(executor: Awaited) -> None:
    assert await executor.get_service_state(NS, SVC) == {}
    assert await executor.get_service(NS, SVC) == Service({}, {})


@pytest.mark.parametrize(
    ("stored", "version", "applied"),
    [
        ("99", "100", True),
        ("100", "99", False),
        ("100", "100", True),
        ("9007199254740993", "9007199254740992", False),  # 2^53 + 1 and 2^53 are the same double
        ("9007199254740992", "9007199254740993", True),
        ("18446744073709551615", "18446744073709551614", False),
        ("00099", "100", True),
        ("100", "00099", False),
        ("100", "000000", False),
        ("0", "0", True),
    ],
)
async def test_older_version_is_refused(
    executor: Awaited, raw: redis.Redis, stored: str, version: str, applied: bool
) -> None:
    assert await executor.set_service_state(NS, SVC, 0, "Pending", version=stored) is True
    assert await executor.set_service_state(NS, SVC, 0, "Ready", version=version) is applied
    assert raw.hget(STATE, "0") == ("Ready" if applied else "Pending")
    assert raw.hget(VERSIONS, "0") == (version if applied else stored)

    await executor.set_workload_state(NS, SVC, "Progressing", version=stored)
    assert await executor.set_workload_state(NS, SVC, "Available", version=version) is applied
    assert raw.get(WORKLOAD) == ("Available" if applied else "Progressing")
    assert raw.get(WORKLOAD_VERSION) == (version if applied else stored)


async def test_version_may_be_an_int(executor: Awaited) -> None:
    assert await executor.set_service_state(NS, SVC, 0, "Ready", version=2**60) is True
    assert await executor.set_service_state(NS, SVC, 0, "Pending", version=2**60 - 1) is False


async def test_versions_of_pods_are_independent(executor: Awaited) -> None:
    await executor.set_service_state(NS, SVC, 0, "Ready", version="500")
    assert await executor.set_service_state(NS, SVC, 1, "Ready", version="400") is True
    assert await executor.run(operations.get_state_versions(NS, SVC)) == {0: "500", 1: "400"}


async def test_late_write_does_not_bring_a_removed_pod_back(executor: Awaited, raw: redis.Redis) -> None:
    await executor.set_service_state(NS, SVC, 0, "Ready", version="10")
    await executor.set_service_state(NS, SVC, 1, "Ready", version="10")
    assert await executor.set_service_state(NS, SVC, 0, "", version="20") is True
    assert await executor.set_service_state(NS, SVC, 0, "Terminating", version="19") is False
    assert raw.hgetall(STATE) == {"1": "Ready"}
    assert await executor.set_service_state(NS, SVC, 0, "Pending", version="21") is True


async def test_older_removal_does_not_remove(executor: Awaited) -> None:
    await executor.set_service_state(NS, SVC, 0, "Ready", version="20")
    assert await executor.set_service_state(NS, SVC, 0, "", version="19") is False
    assert await executor.get_service_state(NS, SVC) == {0: "Ready"}


async def test_versions_outlive_the_last_state_by_an_hour(executor: Awaited, wire: Wire) -> None:
    await executor.set_service_state(NS, SVC, 0, "Ready", version="10")
    await executor.set_service_state(NS, SVC, 1, "Ready", version="10")
    await executor.set_service_state(NS, SVC, 0, "", version="20")
    assert wire.milliseconds(VERSIONS) == -1
    await executor.set_service_state(NS, SVC, 1, "", version="20")
    assert TOMBSTONE_MILLISECONDS - 10_000 < wire.milliseconds(VERSIONS) <= TOMBSTONE_MILLISECONDS

    # A refused write leaves the hour running; the next state ends it.
    assert await executor.set_service_state(NS, SVC, 0, "Ready", version="19") is False
    assert 0 < wire.milliseconds(VERSIONS) <= TOMBSTONE_MILLISECONDS
    await executor.set_service_state(NS, SVC, 1, "Ready", version="21")
    assert wire.milliseconds(VERSIONS) == -1
    assert await executor.run(operations.get_state_versions(NS, SVC)) == {0: "20", 1: "21"}


async def test_unversioned_state_ends_the_hour_too(executor: Awaited, wire: Wire) -> None:
    await executor.set_service_state(NS, SVC, 0, "", version="20")
    await executor.set_service_state(NS, SVC, 1, "Ready")
    assert wire.milliseconds(VERSIONS) == -1


async def test_unversioned_write_always_passes_and_forgets_the_version(executor: Awaited) -> None:
    await executor.set_service_state(NS, SVC, 0, "Ready", version="100")
    assert await executor.set_service_state(NS, SVC, 0, "Draining") is True
    assert await executor.run(operations.get_state_versions(NS, SVC)) == {}
    assert await executor.set_service_state(NS, SVC, 0, "Ready", version="5") is True


async def test_two_key_and_one_key_calls_of_another_client(executor: Awaited, wire: Wire) -> None:
    assert wire("statefulSetState", [STATE, VERSIONS], "0", "Ready", "7") == 1
    assert wire("statefulSetState", [STATE], "0", "Pending", "6") == 0
    assert await executor.get_service_state(NS, SVC) == {0: "Ready"}
    assert wire("statefulSetState", [STATE], "0", "Pending") == 1
    assert await executor.set_service_state(NS, SVC, 0, "Ready", version="1") is True


async def test_version_that_is_no_number_is_refused_by_the_script_itself(wire: Wire) -> None:
    with pytest.raises(ResponseError, match="statefulSetState: version must be decimal digits, got 1e9"):
        wire("statefulSetState", [STATE, VERSIONS], "0", "Ready", "1e9")
    assert wire.redis.keys() == []


async def test_workload_state_is_a_string_other_clients_can_read(executor: Awaited, raw: redis.Redis) -> None:
    assert await executor.get_workload_state(NS, SVC) is None
    assert await executor.set_workload_state(NS, SVC, "Available") is True
    assert raw.get(WORKLOAD) == "Available"
    assert await executor.get_workload_state(NS, SVC) == "Available"


async def test_workload_states_of_many_services(executor: Awaited, raw: redis.Redis) -> None:
    raw.set("sf:{games:workload:arena}", "Degraded")
    await executor.set_workload_state(NS, SVC, "Available")
    asked = [SVC, "nobody", "arena", SVC]
    assert await executor.get_workload_states(NS, asked) == {SVC: "Available", "arena": "Degraded"}
    assert await executor.get_workload_states(NS, iter(asked)) == {SVC: "Available", "arena": "Degraded"}
    assert await executor.get_workload_states(NS, []) == {}


async def test_removed_workload_leaves_its_version_for_an_hour(executor: Awaited, wire: Wire) -> None:
    await executor.set_workload_state(NS, SVC, "Available", version="10")
    assert wire.milliseconds(WORKLOAD_VERSION) == -1
    assert await executor.set_workload_state(NS, SVC, "", version="20") is True
    assert await executor.get_workload_state(NS, SVC) is None
    assert TOMBSTONE_MILLISECONDS - 10_000 < wire.milliseconds(WORKLOAD_VERSION) <= TOMBSTONE_MILLISECONDS
    assert await executor.set_workload_state(NS, SVC, "Available", version="19") is False
    assert await executor.get_workload_state(NS, SVC) is None
    assert await executor.set_workload_state(NS, SVC, "Progressing", version="21") is True
    assert wire.milliseconds(WORKLOAD_VERSION) == -1
    assert await executor.run(operations.get_workload_version(NS, SVC)) == "21"


async def test_unversioned_workload_write_forgets_the_version(executor: Awaited, raw: redis.Redis) -> None:
    await executor.set_workload_state(NS, SVC, "Available", version="10")
    assert await executor.set_workload_state(NS, SVC, "Degraded") is True
    assert await executor.run(operations.get_workload_version(NS, SVC)) is None
    assert await executor.set_workload_state(NS, SVC, "Available", version="3") is True
    assert await executor.set_workload_state(NS, SVC, "") is True
    assert raw.keys() == []
