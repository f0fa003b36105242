"""Clients that use a few links all at once, and write down what they asked and were told, and when.

A process is either an event loop with several tasks that share an asyncio executor, or several threads that share a
blocking one. Each task or thread is a client, which makes one call at a time: of a single link, of many in bulk, or a
pipeline. The clock is CLOCK_MONOTONIC, which all processes of a machine read alike.

The read cache (`cache=True`) has no place here: a cached link may be stale for a bounded time, which its contract says
and a linearizable register forbids.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import multiprocessing
import random
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self, TypeAlias, cast

from podlink import PartialFailure, PodLinkError, RedisUnavailable, StatefulExecutor, sync
from podlink.store.operations import links
from proofs.linearizability import Call
from proofs.register import LONG_SECONDS, Asked, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from multiprocessing.connection import Connection

    from podlink.store.operations import Operation

Executor: TypeAlias = StatefulExecutor | sync.StatefulExecutor
Maker: TypeAlias = Callable[[], Executor]
Form: TypeAlias = Literal["single", "bulk", "pipeline"]

NAMESPACE: Final = "games"
PERMANENT: Final = -1

_BULKS: Final[Mapping[Kind, str]] = {
    "get_linked_pod": "get_linked_pods",
    "set_linked_pod": "set_linked_pods",
    "try_set_linked_pod": "try_set_linked_pods",
    "set_linked_pod_if_absent": "set_linked_pods_if_absent",
    "compute_linked_pod_if_absent": "compute_linked_pods_if_absent",
    "remove_linked_pod": "remove_linked_pods",
    "remove_linked_pod_with_id": "remove_linked_pods_with_id",
}
_NO_METHOD: Final[frozenset[Kind]] = frozenset({"link_ttl", "read_link"})
_RELEASING: Final[frozenset[Kind]] = frozenset({"remove_linked_pod", "remove_linked_pod_with_id"})
_WITH_POD: Final[frozenset[Kind]] = frozenset(
    {"set_linked_pod", "try_set_linked_pod", "set_linked_pod_if_absent", "remove_linked_pod_with_id"}
)
_WITH_SECONDS: Final[frozenset[Kind]] = _WITH_POD | _RELEASING | {"compute_linked_pod_if_absent"}
_WEIGHTS: Final[Mapping[Kind, int]] = {
    "get_linked_pod": 4,
    "get_linked_pod_if_persist": 1,
    "get_linked_services": 2,
    "link_ttl": 1,
    "read_link": 1,
    "set_linked_pod": 3,
    "try_set_linked_pod": 4,
    "set_linked_pod_if_absent": 2,
    "compute_linked_pod_if_absent": 3,
    "remove_linked_pod": 2,
    "remove_linked_pod_with_id": 3,
}
_PATIENCE_SECONDS: Final = 120
_HEARD_NANOSECONDS: Final = 3_000_000
"""Until all clients have heard of a plan."""


class Plan(NamedTuple):
    """One round of all clients.

    Attributes:
        seed: what each of them does follows from it, and its name.
        service: of all links.
        uids: whose links are used, the first ones most; nobody has used them before.
        steps: calls of each client.
        pause_seconds: between two calls of a client, at most.
        forms: of calls.
        begin_at: when to begin, in nanoseconds of the clock.
    """

    seed: int
    service: str
    uids: tuple[str, ...]
    steps: int = 6
    pause_seconds: float = 0.0
    forms: tuple[Form, ...] = ("single", "single", "single", "bulk", "pipeline")
    begin_at: int = 0


class Step(NamedTuple):
    """One call: what is asked of which uids. In bulk, each uid is named once, and all are asked the same kind."""

    form: Form
    asked: Sequence[tuple[str, Asked]]


class Record(NamedTuple):
    """What the clients of a round have written down.

    Attributes:
        calls: (uid, call), where it may have happened.
        refused: calls that failed, and are said not to have happened.
    """

    calls: Sequence[tuple[str, Call]]
    refused: int


class Client:
    """Decides what to ask, and writes down what came of it.

    Half of the pods it sets are of its own, so that whoever reads one knows whose it is. The others, and those that it
    expects to find, are what others set or it has seen, so that calls meet.
    """

    def __init__(self, name: str, number: int, plan: Plan) -> None:
        self._name = name
        self._plan = plan
        self._rng = random.Random(f"{plan.seed} {name}")
        self._own_pods = iter(range(1000 * (number + 1), 1000 * (number + 2)))
        self._seen: dict[str, int] = {}
        self.calls: list[tuple[str, Call]] = []
        self.refused = 0

    def next_step(self) -> Step:
        """What to ask next."""
        form = self._rng.choice(self._plan.forms)
        if form == "bulk":
            kind = self._kind(_BULKS)
            uids = self._rng.sample(self._plan.uids, self._rng.randint(1, len(self._plan.uids)))
            seconds = self._seconds(kind)
            return Step(form, [(uid, self._ask(uid, kind, seconds)) for uid in uids])
        count = self._rng.randint(2, 5) if form == "pipeline" else 1
        uids = self._rng.choices(self._plan.uids, [1 / (rank + 1) for rank in range(len(self._plan.uids))], k=count)
        kinds = [self._kind(_WEIGHTS) for _ in uids]
        return Step(
            form, [(uid, self._ask(uid, kind, self._seconds(kind))) for uid, kind in zip(uids, kinds, strict=True)]
        )

    def pause_seconds(self) -> float:
        """How long to wait before the next step."""
        return self._rng.random() * self._plan.pause_seconds

    def write_down(self, step: Step, results: Sequence[Any], began: int, ended: int) -> None:
        """Write down a step with a result, or PodLinkError, for each uid asked.

        Raises:
            PodLinkError: the server refused something, which no caller of this workload has deserved.
        """
        for place, ((uid, asked), result) in enumerate(zip(step.asked, results, strict=True)):
            end: int | None = ended
            told = result
            if isinstance(result, RedisUnavailable):
                if not result.maybe_applied:
                    self.refused += 1
                    continue
                end = told = None
            elif isinstance(result, PodLinkError):
                raise result
            else:
                told = _told(asked, result, self._plan.service)
                self._remember(uid, told)
            place_in_pipeline = place if step.form == "pipeline" else None
            self.calls.append((uid, Call(self._name, asked, told, began, end, place_in_pipeline)))

    def _kind(self, kinds: Mapping[Kind, Any]) -> Kind:
        names = list(kinds)
        return self._rng.choices(names, [_WEIGHTS[kind] for kind in names])[0]

    def _seconds(self, kind: Kind) -> int | None:
        if kind not in _WITH_SECONDS:
            return None
        at_once = 0 if kind in _RELEASING else PERMANENT
        return LONG_SECONDS if self._rng.random() < 0.25 else at_once

    def _ask(self, uid: str, kind: Kind, seconds: int | None) -> Asked:
        pod = expected = None
        if kind == "remove_linked_pod_with_id":
            pod = self._known_pod(uid)
        elif kind in _WITH_POD:
            pod = next(self._own_pods) if self._rng.random() < 0.5 else self._rng.randrange(6)
        if kind == "try_set_linked_pod" and self._rng.random() < 0.7:
            expected = self._known_pod(uid)
        return Asked(kind, pod, seconds, expected)

    def _known_pod(self, uid: str) -> int:
        return self._seen[uid] if uid in self._seen and self._rng.random() < 0.8 else self._rng.randrange(6)

    def _remember(self, uid: str, told: Any) -> None:
        pod = told[1] if isinstance(told, tuple) and isinstance(told[0], bool) else told
        if type(pod) is int:
            self._seen[uid] = pod


def start(executor: Executor, step: Step, service: str) -> Any:
    """Make the call: to be awaited if the executor is asyncio's."""
    if step.form == "pipeline":
        return executor.run_many([_operation(uid, asked, service) for uid, asked in step.asked])
    (uid, asked), *_ = step.asked
    if step.form == "bulk":
        return _start_bulk(executor, step, service)
    if asked.kind in _NO_METHOD:
        return executor.run(_operation(uid, asked, service))
    words, options = _arguments(uid, asked, service)
    return getattr(executor, asked.kind)(*words, **options)


def results_of(step: Step, answer: Any) -> Sequence[Any]:
    """A result, or PodLinkError, for each uid asked, from what the call returned or raised."""
    if isinstance(answer, PartialFailure):
        both = {**answer.results, **answer.errors}
        return [both[uid] for uid, _ in step.asked]
    if isinstance(answer, PodLinkError):
        return [answer] * len(step.asked)
    if step.form == "pipeline":
        return list(answer)
    if step.form == "single":
        return [answer]
    if step.asked[0][1].kind == "get_linked_pod":
        answer = {uid: pod for pod, uids in answer.items() for uid in uids}
        return [answer.get(uid) for uid, _ in step.asked]
    return [answer[uid] for uid, _ in step.asked]


def _start_bulk(executor: Executor, step: Step, service: str) -> Any:
    (_, asked), *_ = step.asked
    options: dict[str, Any] = {} if asked.seconds is None else {"persist_seconds": asked.seconds}
    if asked.kind == "try_set_linked_pod":
        options["expected"] = {uid: each.expected for uid, each in step.asked if each.expected is not None}
    whom: Any = [uid for uid, _ in step.asked]
    if asked.kind in _WITH_POD:
        whom = {uid: each.pod for uid, each in step.asked}
    return getattr(executor, _BULKS[asked.kind])(NAMESPACE, whom, service, **options)


def _operation(uid: str, asked: Asked, service: str) -> Operation[Any]:
    words, options = _arguments(uid, asked, service)
    operation: Operation[Any] = getattr(links, asked.kind)(*words, **options)
    return operation


def _arguments(uid: str, asked: Asked, service: str) -> tuple[list[Any], dict[str, Any]]:
    if asked.kind == "get_linked_services":
        return [NAMESPACE, uid], {}
    words = [NAMESPACE, uid, service, *([asked.pod] if asked.kind in _WITH_POD else [])]
    options = {} if asked.seconds is None else {"persist_seconds": asked.seconds}
    return words, options | ({} if asked.expected is None else {"expected": asked.expected})


def _told(asked: Asked, result: Any, service: str) -> Any:
    """What of a result is about the link alone, and does not depend on how much time has passed."""
    match asked.kind:
        case "get_linked_services":
            return result.get(service)
        case "link_ttl":
            return _life(result)
        case "read_link":
            pod, milliseconds = result
            return pod, None if pod is None else _life(milliseconds)
        case _:
            return result


def _life(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return "permanent" if milliseconds == PERMANENT else "temporary"


class Team:
    """Processes full of clients, which wait for plans. Leaving the block ends them.

    Args:
        processes: how many.
        clients: of each process.
    """

    def __init__(self, processes: int = 3, clients: int = 4) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._processes = []
        for number in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, number, clients), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()

    def equip(self, makers: Sequence[Maker]) -> None:
        """Give each process another executor, of what makes it: importable, as another process has to find it.

        Raises:
            RuntimeError: a process failed; the text holds its traceback.
        """
        for end, make in zip(self._ends, makers, strict=True):
            end.send(make)
        self._answers()

    def begin(self, plan: Plan) -> None:
        """Have every client begin a plan at the same time."""
        plan = plan._replace(begin_at=time.monotonic_ns() + _HEARD_NANOSECONDS)
        for end in self._ends:
            end.send(plan)

    def records(self) -> list[Record]:
        """Wait until all are done, and return what they have written down.

        Raises:
            RuntimeError: a process failed; the text holds its traceback.
        """
        return self._answers()

    def _answers(self) -> list[Any]:
        answers = []
        for end in self._ends:
            if not end.poll(_PATIENCE_SECONDS):
                raise RuntimeError(f"a process of clients said nothing for {_PATIENCE_SECONDS} s")
            answers.append(end.recv())
        for answer in answers:
            if isinstance(answer, str):
                raise RuntimeError(f"a process of clients failed\n{answer}")  # noqa: TRY004 - it is a traceback
        return answers


def _work(end: Connection, number: int, clients: int) -> None:
    """A process of clients: do plan after plan, with an executor until there is to be another, until nobody is left."""
    with suppress(EOFError):
        told: Maker | Plan = end.recv()
        while True:
            if isinstance(told, Plan):
                raise TypeError("a plan came before anything to carry it out with")
            try:
                executor = told()
                end.send(Record([], 0))
                if isinstance(executor, StatefulExecutor):
                    told = asyncio.run(_work_in_tasks(end, executor, number, clients))
                else:
                    told = _work_in_threads(end, executor, number, clients)
            except EOFError:
                raise
            except Exception:  # noqa: BLE001 - the one that waits has to know
                end.send(traceback.format_exc())
                told = end.recv()


async def _work_in_tasks(end: Connection, executor: StatefulExecutor, number: int, count: int) -> Maker:
    async with executor:
        while isinstance(plan := await asyncio.to_thread(end.recv), Plan):
            clients = _clients(plan, number, count, "task")
            await asyncio.sleep(_seconds_until(plan.begin_at))
            await asyncio.gather(*[_do_in_task(executor, plan, client) for client in clients])
            end.send(_record(clients))
        return cast("Maker", plan)


def _work_in_threads(end: Connection, executor: sync.StatefulExecutor, number: int, count: int) -> Maker:
    with executor, ThreadPoolExecutor(count) as threads:
        while isinstance(plan := end.recv(), Plan):
            clients = _clients(plan, number, count, "thread")
            time.sleep(_seconds_until(plan.begin_at))
            list(threads.map(functools.partial(_do_in_thread, executor, plan), clients))
            end.send(_record(clients))
        return cast("Maker", plan)


async def _do_in_task(executor: StatefulExecutor, plan: Plan, client: Client) -> None:
    for _ in range(plan.steps):
        step = client.next_step()
        began = time.monotonic_ns()
        try:
            answer = start(executor, step, plan.service)
            answer = await answer if inspect.isawaitable(answer) else answer
        except PodLinkError as error:
            answer = error
        client.write_down(step, results_of(step, answer), began, time.monotonic_ns())
        await asyncio.sleep(client.pause_seconds())


def _do_in_thread(executor: sync.StatefulExecutor, plan: Plan, client: Client) -> None:
    for _ in range(plan.steps):
        step = client.next_step()
        began = time.monotonic_ns()
        try:
            answer = start(executor, step, plan.service)
        except PodLinkError as error:
            answer = error
        client.write_down(step, results_of(step, answer), began, time.monotonic_ns())
        time.sleep(client.pause_seconds())


def _clients(plan: Plan, process: int, count: int, what: str) -> list[Client]:
    return [Client(f"process {process} {what} {number}", process * count + number, plan) for number in range(count)]


def _record(clients: Sequence[Client]) -> Record:
    return Record([call for client in clients for call in client.calls], sum(client.refused for client in clients))


def _seconds_until(moment: int) -> float:
    return max(0, moment - time.monotonic_ns()) / 1e9
