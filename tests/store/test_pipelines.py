"""Many operations in one pipeline, and scripts the server has forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError

from podlink import PodLinkError, RedisUnavailable, ScriptError, Service
from podlink.store import operations
from podlink.store.batching.exchange import SendMode, exchange
from podlink.store.operations import scripts
from podlink.store.operations.base import command
from store.harness import LINK, LINKS, LOAD, NS, ONE_PRIMARY, SVC, UID, Awaited, Wire

if TYPE_CHECKING:
    import redis

    from podlink.store.operations import Operation

KILL_THIS_CONNECTION = command(
    "kill", "CLIENT KILL", lambda killed: killed >= 1, args=("TYPE", "normal", "SKIPME", "no")
)


def move(pod: int) -> Operation[Any]:
    return operations.set_linked_pod(NS, UID, SVC, pod)


async def test_results_come_in_the_order_of_the_operations(executor: Awaited) -> None:
    many = [
        move(0),
        operations.try_set_linked_pod(NS, UID, SVC, 1),
        operations.get_linked_pod(NS, UID, SVC),
        operations.get_workload_states(NS, []),
        operations.remove_linked_pod(NS, UID, SVC),
        operations.get_linked_services(NS, UID),
    ]
    assert await executor.run_many(many) == [None, (False, 0), 0, {}, True, {}]


@pytest.mark.only_on(*ONE_PRIMARY, reason="each server of a Cluster counts its own calls")
async def test_nothing_to_run_needs_no_server(executor: Awaited, raw: redis.Redis) -> None:
    clients = raw.info("stats")["total_connections_received"]
    assert await executor.run_many([]) == []
    assert await executor.get_linked_pods(NS, [], SVC) == {}
    assert raw.info("stats")["total_connections_received"] == clients


async def test_what_needs_no_server_may_be_among_what_does(executor: Awaited, raw: redis.Redis) -> None:
    many = [move(1), operations.get_workload_states(NS, []), operations.get_linked_pod(NS, UID, SVC)]
    assert await executor.run_many(many) == [None, {}, 1]


async def test_each_slot_has_its_own_error(executor: Awaited, raw: redis.Redis) -> None:
    raw.rpush("sf:{games:lk:broken}lobby", "no string")
    before, broken, after = await executor.run_many(
        [move(1), operations.set_linked_pod(NS, "broken", SVC, 1), operations.get_linked_pod(NS, UID, SVC)]
    )
    assert (before, after) == (None, 1)
    assert isinstance(broken, ScriptError)
    assert broken.script == "statefulSetLink"


@pytest.mark.only_on(*ONE_PRIMARY, reason="each server of a Cluster counts its own calls")
async def test_first_call_loads_the_script(executor: Awaited, wire: Wire) -> None:
    wire.redis.config_resetstat()
    assert await executor.set_linked_pod(NS, UID, SVC, 1) is None
    assert await executor.set_linked_pod(NS, UID, SVC, 2) == 1
    assert await executor.set_linked_pod(NS, UID, SVC, 3) == 2
    assert wire.calls_of("eval") + wire.calls_of("script|load") == 1
    known = wire.calls_of("evalsha")
    assert await executor.set_linked_pod(NS, UID, SVC, 4) == 3
    assert wire.calls_of("evalsha") == known + 1


async def test_flushed_scripts_are_invisible(executor: Awaited, wire: Wire) -> None:
    await executor.set_linked_pod(NS, UID, SVC, 1)
    for pod in (2, 3):
        wire.redis.script_flush()
        assert await executor.set_linked_pod(NS, UID, SVC, pod) == pod - 1
    wire.redis.script_flush()
    assert await executor.run_many([move(pod) for pod in range(4, 10)]) == list(range(3, 9))
    assert wire.redis.hgetall(LOAD) == {"9": "1"}


async def test_order_holds_when_the_server_knows_only_some_of_the_scripts(executor: Awaited, wire: Wire) -> None:
    await executor.set_service_state(NS, SVC, 7, "Ready")
    await executor.set_linked_pod(NS, UID, SVC, 0)
    wire.redis.script_flush()
    # Known: compute. Were it run before the removal, it would return pod 0, and the removal would leave no link.
    wire.redis.script_load(scripts.COMPUTE_LINK_IF_ABSENT.text)
    removed, computed, read = await executor.run_many(
        [
            operations.remove_linked_pod_with_id(NS, UID, SVC, 0),
            operations.compute_linked_pod_if_absent(NS, UID, SVC),
            operations.get_linked_pod(NS, UID, SVC),
        ]
    )
    assert (removed, computed, read) == (True, 7, 7)


@pytest.mark.only_on(*ONE_PRIMARY, reason="each server of a Cluster counts its own calls")
async def test_long_pipeline_sends_each_operation_once(executor: Awaited, wire: Wire) -> None:
    wire.redis.config_resetstat()
    assert await executor.run_many([move(pod) for pod in range(500)]) == [None, *range(499)]
    assert (wire.calls_of("eval"), wire.calls_of("evalsha")) == (1, 499)


def test_only_what_failed_with_noscript_is_sent_again() -> None:
    # Another client flushes the scripts while our pipeline runs: the server forgets between two of our commands.
    many = [move(1), move(2), operations.get_linked_pod(NS, UID, SVC), operations.get_service(NS, SVC), move(3)]
    steps = exchange(many)
    first = next(steps)
    assert [request[0] for request in first] == ["EVAL", "EVALSHA", "GET", "EVAL", "EVALSHA"]
    second = steps.send([-1, NoScriptError("flushed"), b"1", [[], []], NoScriptError("flushed")])
    assert second == [("SCRIPT", "LOAD", scripts.SET_LINK.text), many[1].request(), many[4].request()]
    with pytest.raises(StopIteration) as end:
        steps.send([b"digest", b"1", b"2"])
    assert end.value.value == [None, 1, 1, Service({}, {}), 2]


def test_a_script_that_is_forgotten_again_is_sent_with_its_text() -> None:
    many = [move(1), move(2)]
    steps = exchange(many, SendMode(wait=("WAIT", 1, 100)))
    next(steps)
    steps.send([NoScriptError("flushed"), NoScriptError("flushed"), 1])
    # Flushed once more, between the loading and the second of the calls.
    third = steps.send([b"digest", b"0", NoScriptError("flushed again"), 1])
    assert third == [many[1].request(with_text=True), ("WAIT", 1, 100)]
    with pytest.raises(StopIteration) as end:
        steps.send([b"1", 1])
    assert end.value.value == [0, 1]


def test_nothing_is_sent_a_fourth_time() -> None:
    steps = exchange([move(1)])
    next(steps)
    steps.send([NoScriptError("unknown")])
    steps.send([b"digest", NoScriptError("unknown")])
    with pytest.raises(StopIteration) as end:
        steps.send([NoScriptError("still unknown")])
    (error,) = end.value.value
    assert isinstance(error, ScriptError)
    assert "still unknown" in str(error)


def test_a_batch_with_too_few_replies_fails_each_of_its_calls() -> None:
    steps = exchange([move(1), move(2), move(3)], SendMode(merged=True))
    next(steps)
    with pytest.raises(StopIteration) as end:
        steps.send([[b"-1", b"1"]])
    assert [type(error) for error in end.value.value] == [ScriptError] * 3
    assert "2 replies to 3 calls" in str(end.value.value[0])


def test_refused_loading_tells_the_reason() -> None:
    steps = exchange([move(1)])
    next(steps)
    steps.send([NoScriptError("unknown")])
    with pytest.raises(StopIteration) as end:
        steps.send([OutOfMemoryError("used memory > 'maxmemory'"), NoScriptError("unknown")])
    (error,) = end.value.value
    assert isinstance(error, RedisUnavailable)
    assert "used memory > 'maxmemory'" in str(error)
    assert error.maybe_applied is False


@pytest.mark.only_on(*ONE_PRIMARY, reason="the operations of a pipeline go to many servers of a Cluster")
async def test_connection_lost_half_way_keeps_the_answers_that_came(executor: Awaited, wire: Wire) -> None:
    await executor.run(move(0))
    wire.redis.config_resetstat()
    results = await executor.run_many([move(1), KILL_THIS_CONNECTION, move(2), move(3)])
    assert results[:2] == [0, True]
    for lost in results[2:]:
        assert isinstance(lost, RedisUnavailable)
        assert lost.maybe_applied is True
        assert "may or may not have been applied" in str(lost)
    # Nothing was sent a second time, and the executor goes on with a new connection.
    assert wire.script_calls() <= 3
    assert await executor.run(move(9)) in {1, 2, 3}


@pytest.mark.only_on(*ONE_PRIMARY, reason="the operations of a pipeline go to many servers of a Cluster")
async def test_errors_of_a_pipeline_are_of_one_family(executor: Awaited) -> None:
    _, lost = await executor.run_many([KILL_THIS_CONNECTION, move(1)])
    assert isinstance(lost, PodLinkError)
    assert isinstance(lost.__cause__, ConnectionError | RedisConnectionError)


async def test_keys_stay_as_they_are_when_a_reply_makes_no_sense(executor: Awaited, raw: redis.Redis) -> None:
    raw.set(LINK, "three")
    raw.hset(LINKS, SVC, "three")
    with pytest.raises(ScriptError, match=r"'three' is no podId") as error:
        await executor.get_linked_pod_if_persist(NS, UID, SVC)
    assert error.value.script == "statefulGetLinkIfPersist"
    assert LINK in str(error.value)
    with pytest.raises(ScriptError, match=r"sf:\{games:lk:player-42\}lobby") as error:
        await executor.get_linked_pods(NS, ["nobody", UID], SVC)
    assert error.value.script == "MGET"
    with pytest.raises(ScriptError, match=r"sf:\{games:lk:player-42\}"):
        await executor.get_linked_services(NS, UID)
    assert raw.get(LINK) == "three"
    raw.delete(LINK, LINKS)
