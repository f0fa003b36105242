"""Random histories of calls beside the model of the contract; after each step the whole of Redis is compared with it.

Calls are made alone, many at once, and many in a row down one pipeline, and time passes in between.
"""

from __future__ import annotations

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from podlink import StatefulExecutor, sync
from podlink.store import operations
from podlink.store.operations import Bulk, Operation
from proofs.contract import BULKS, FOREVER, Call, Model, explanations
from proofs.keyspace import Keyspace, differences, pass_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import redis

    from store.harness import Topology

STEPS = 30

SLACK_SECONDS = 400
"""A history may really take so long. Life times and steps of time are whole thousands of seconds, and each step one
second more, so nothing ends within so long of a step."""

AT_ONCE = 3

SPREAD = {"get_service", "get_linked_pods", "get_workload_states", *BULKS}
"""On a Cluster these look at several slots, or at what calls under way have not booked yet."""


class Subject(Protocol):
    """An executor, with the three ways to call it."""

    def one(self, call: Call) -> Any: ...
    def at_once(self, calls: Sequence[Call]) -> list[Any]: ...
    def in_a_row(self, calls: Sequence[Call]) -> list[Any]: ...
    def close(self) -> None: ...


def in_one_pipeline(calls: Sequence[Call], run: Callable[[list[Operation[Any]]], list[Any]]) -> list[Any]:
    """What calls return whose operations are sent in one go."""
    built = [getattr(operations, call.method)(**call.arguments) for call in calls]
    parts = [each.operations if isinstance(each, Bulk) else [each] for each in built]
    replies = iter(run([operation for part in parts for operation in part]))
    told: list[Any] = []
    for each, part in zip(built, parts, strict=True):
        own = list(itertools.islice(replies, len(part)))
        told.append(each.collect(own) if isinstance(each, Bulk) else own[0])
    return told


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
        return in_one_pipeline(calls, lambda many: self._runner.run(self._executor.run_many(many)))

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
        return in_one_pipeline(calls, self._executor.run_many)

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
READY = {"namespace": "games", "state": "Ready"}


def call(method: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Call]:
    return st.fixed_dictionaries(arguments).map(lambda chosen: Call(method, chosen))


SERVICE = {"namespace": NAMESPACES, "service": SERVICES}
PODS_OF = st.dictionaries(UIDS, PODS, max_size=3)
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
    call("compute_linked_pod_if_absent", **LINK, persist_seconds=LIVES),
    call("get_linked_pod", **LINK),
    call("get_linked_pod_if_persist", **LINK),
    call("get_linked_pods", namespace=NAMESPACES, uids=st.lists(UIDS), service=SERVICES),
    call("remove_linked_pod", **LINK, persist_seconds=WINDOWS),
    call("remove_linked_pod_with_id", **LINK, pod_id=PODS, persist_seconds=WINDOWS),
    call("get_linked_services", namespace=NAMESPACES, uid=UIDS),
    call("set_linked_pods", **SERVICE, pods=PODS_OF, persist_seconds=LIVES),
    call("try_set_linked_pods", **SERVICE, pods=PODS_OF, persist_seconds=LIVES, expected=st.none() | PODS_OF),
    call("set_linked_pods_if_absent", **SERVICE, pods=PODS_OF, persist_seconds=LIVES),
    call("compute_linked_pods_if_absent", **SERVICE, uids=st.lists(UIDS, max_size=4), persist_seconds=LIVES),
    call("remove_linked_pods", **SERVICE, uids=st.lists(UIDS, max_size=4), persist_seconds=WINDOWS),
    call("remove_linked_pods_with_id", **SERVICE, pods=PODS_OF, persist_seconds=WINDOWS),
)


def apart(calls: list[Call]) -> list[Call]:
    """Those calls that have an order on a Cluster too: each of a link, or of one key, and none of a link twice."""
    links = {tuple(call.arguments.get(name) for name in ("namespace", "uid", "service")): call for call in calls}
    return [call for call in links.values() if call.method not in SPREAD]


def single_answers(answered: Sequence[tuple[Call, Any]]) -> list[tuple[Call, Any]]:
    """Bulk calls taken to pieces: between two of its links, others may come."""
    singles: list[tuple[Call, Any]] = []
    for call, told in answered:
        if call.method in BULKS:
            assert set(told) == {uid for uid, _ in call.singles()}
            singles += [(single, told[uid]) for uid, single in call.singles()]
        else:
            singles.append((call, told))
    return singles


class History(RuleBasedStateMachine):
    """One history, from an empty Redis on."""

    def __init__(self, subject: Subject, client: redis.Redis, *, expires_fields: bool, clustered: bool) -> None:
        super().__init__()
        self._subject = subject
        self._client = client
        self._clustered = clustered
        self._model = Model(expires_fields=expires_fields)
        client.flushall()

    @initialize(pods=st.sets(PODS), service=SERVICES)
    def pods_are_ready(self, pods: set[int], service: str) -> None:
        for pod in sorted(pods):
            self.one_call(Call("set_service_state", READY | {"service": service, "pod_id": pod}))

    @rule(call=CALLS)
    def one_call(self, call: Call) -> None:
        told = self._subject.one(call)
        after = self._model.after(call, told)
        assert after, f"{call} returned {told!r}, not {self._model.expected(call)!r}"
        self._is_now(after)

    @rule(calls=st.lists(CALLS, min_size=2, max_size=AT_ONCE))
    def calls_at_once(self, calls: list[Call]) -> None:
        if self._clustered:
            calls = apart(calls)
            self._model.any_ready = True
        answered = list(zip(calls, self._subject.at_once(calls), strict=True))
        after = list(explanations(self._model, single_answers(answered)))
        assert after, f"no order of these calls allows what they returned: {answered}"
        facts = Keyspace(self._client).facts
        found = next((each for each in after if not differences(facts, each.facts(), SLACK_SECONDS)), after[0])
        found.any_ready = False
        self._is_now(found)

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


def check_histories(
    subject: Subject,
    client: redis.Redis,
    *,
    examples: int,
    expires_fields: bool,
    clustered: bool = False,
    **others: Any,
) -> None:
    """Run so many histories.

    Args:
        subject: what is called.
        client: of the same servers, which are emptied.
        examples: how many.
        expires_fields: whether the servers expire single fields of a hash.
        clustered: whether they are a Cluster.
        others: further settings of Hypothesis.

    Raises:
        Exception: a history that is not as the contract says; the smallest that was found is noted with it.
    """
    run_state_machine_as_test(
        lambda: History(subject, client, expires_fields=expires_fields, clustered=clustered),
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            **others,
        ),
    )
