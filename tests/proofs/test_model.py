"""Whatever is called in whatever order, the executor answers and Redis holds what the contract says.

Random histories of calls, alone, many at once, and many in a row down one pipeline, with time passing in between, beside
a model of the contract. After each step the whole of Redis is compared with the model, key by key.

    pytest tests/proofs/test_model.py --hypothesis-profile=long --timeout=0      fifty times as many histories
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from podlink import StatefulExecutor, sync
from podlink.store import operations
from proofs.contract import FOREVER, Call, Model, explanations
from proofs.keyspace import Keyspace, differences, pass_time
from sandbox.processes import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import redis

    from sandbox.redis_servers import RedisServer

EXAMPLES = 60
STEPS = 40
LONG = 50

SLACK_SECONDS = 400
"""A history may really take so long. Life times and steps of time are whole thousands of seconds, and each step one
second more, so nothing ends within so long of a step."""

AT_ONCE = 4


class Subject(Protocol):
    """An executor, with the three ways to call it."""

    def one(self, call: Call) -> Any: ...
    def at_once(self, calls: Sequence[Call]) -> list[Any]: ...
    def in_a_row(self, calls: Sequence[Call]) -> list[Any]: ...
    def close(self) -> None: ...


def operation(call: Call) -> operations.Operation[Any]:
    built: operations.Operation[Any] = getattr(operations, call.method)(**call.arguments)
    return built


class Asynchronous:
    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        self._executor = StatefulExecutor.from_url(url)

    def one(self, call: Call) -> Any:
        return self.at_once([call])[0]

    def at_once(self, calls: Sequence[Call]) -> list[Any]:
        async def gathered() -> list[Any]:
            return await asyncio.gather(*(getattr(self._executor, call.method)(**call.arguments) for call in calls))

        return self._runner.run(gathered())

    def in_a_row(self, calls: Sequence[Call]) -> list[Any]:
        return self._runner.run(self._executor.run_many([operation(call) for call in calls]))

    def close(self) -> None:
        self._runner.run(self._executor.aclose())
        self._runner.close()


class Blocking:
    def __init__(self, url: str) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE)
        self._executor = sync.StatefulExecutor.from_url(url)

    def one(self, call: Call) -> Any:
        return getattr(self._executor, call.method)(**call.arguments)

    def at_once(self, calls: Sequence[Call]) -> list[Any]:
        return list(self._threads.map(self.one, calls))

    def in_a_row(self, calls: Sequence[Call]) -> list[Any]:
        return self._executor.run_many([operation(call) for call in calls])

    def close(self) -> None:
        self._threads.shutdown()
        self._executor.close()


NAMESPACES = st.sampled_from(["games", "games", "games", "chat"])
SERVICES = st.sampled_from(["lobby", "lobby", "arena"])
UIDS = st.sampled_from(["ann", "bob", "cleo"])
PODS = st.integers(0, 3)
STATES = st.sampled_from(["Ready", "Ready", "Ready", "Draining", "NotReady", ""])
LIVES = st.sampled_from([FOREVER, FOREVER, 1000, 3000])
WINDOWS = st.sampled_from([0, 1000, 3000])
# Doubles cannot tell the last two apart, and as text the first is the largest.
VERSIONS = st.sampled_from([None, 9, "9", "10", "0010", 2**53, 2**53 + 1])


def call(method: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Call]:
    return st.fixed_dictionaries(arguments).map(lambda chosen: Call(method, chosen))


SERVICE = {"namespace": NAMESPACES, "service": SERVICES}
LINK = {"namespace": NAMESPACES, "uid": UIDS, "service": SERVICES}

CALLS = st.one_of(
    call("set_service_state", **SERVICE, pod_id=PODS, state=STATES, version=VERSIONS),
    call("get_service_state", **SERVICE),
    call("get_service", **SERVICE),
    call("set_workload_state", **SERVICE, state=STATES, version=VERSIONS),
    call("get_workload_state", **SERVICE),
    call("get_workload_states", namespace=NAMESPACES, services=st.lists(SERVICES)),
    call("set_linked_pod", **LINK, pod_id=PODS, persist_seconds=LIVES),
    call("try_set_linked_pod", **LINK, pod_id=PODS, persist_seconds=LIVES, expected=st.none() | PODS),
    call("set_linked_pod_if_absent", **LINK, pod_id=PODS, persist_seconds=LIVES),
    call("compute_linked_pod_if_absent", **LINK, persist_seconds=LIVES),
    call("get_linked_pod", **LINK),
    call("get_linked_pod_if_persist", **LINK),
    call("get_linked_pods", namespace=NAMESPACES, uids=st.lists(UIDS), service=SERVICES),
    call("remove_linked_pod", **LINK, persist_seconds=WINDOWS),
    call("remove_linked_pod_with_id", **LINK, pod_id=PODS, persist_seconds=WINDOWS),
    call("get_linked_services", namespace=NAMESPACES, uid=UIDS),
)


class History(RuleBasedStateMachine):
    """One history, from an empty Redis on."""

    def __init__(self, subject: Subject, client: redis.Redis, *, expires_fields: bool) -> None:
        super().__init__()
        self._subject = subject
        self._client = client
        self._model = Model(expires_fields=expires_fields)
        client.flushall()

    @rule(call=CALLS)
    def one_call(self, call: Call) -> None:
        told = self._subject.one(call)
        after = self._model.after(call, told)
        assert after, f"{call} returned {told!r}, not {self._model.expected(call)!r}"
        self._is_now(after)

    @rule(calls=st.lists(CALLS, min_size=2, max_size=AT_ONCE))
    def calls_at_once(self, calls: list[Call]) -> None:
        answered = list(zip(calls, self._subject.at_once(calls), strict=True))
        after = list(explanations(self._model, answered))
        assert after, f"no order of these calls allows what they returned: {answered}"
        facts = Keyspace(self._client).facts
        self._is_now(next((each for each in after if not differences(facts, each.facts(), SLACK_SECONDS)), after[0]))

    @rule(calls=st.lists(CALLS, min_size=2, max_size=8))
    def calls_in_a_row(self, calls: list[Call]) -> None:
        model = self._model
        for call, told in zip(calls, self._subject.in_a_row(calls), strict=True):
            after = model.after(call, told)
            assert after, f"{call} of {calls} returned {told!r}, not {model.expected(call)!r}"
            model = after
        self._is_now(model)

    @rule(thousands=st.integers(0, 4))
    def time_passes(self, thousands: int) -> None:
        seconds = thousands * 1000 + 1
        self._model.pass_time(seconds)
        pass_time(self._client, seconds)
        self._is_now(self._model)

    @rule()
    def scripts_are_forgotten(self) -> None:
        self._client.script_flush()

    def _is_now(self, model: Model) -> None:
        self._model = model
        found = Keyspace(self._client)
        problems = found.problems + differences(found.facts, model.facts(), SLACK_SECONDS)
        assert not problems, "; ".join(problems)


@pytest.fixture(params=[Asynchronous, Blocking], ids=["async", "blocking"])
def subject(request: pytest.FixtureRequest, server: RedisServer) -> Iterator[Subject]:
    made = request.param(server.url)
    yield made
    made.close()


def test_every_history_is_as_the_contract_says(subject: Subject, server: RedisServer, raw: redis.Redis) -> None:
    times = LONG if settings.get_current_profile_name() == "long" else 1
    run_state_machine_as_test(
        lambda: History(subject, raw, expires_fields=server.kind == "valkey"),
        settings=settings(
            max_examples=EXAMPLES * times,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
