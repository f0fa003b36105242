"""Where histories are recorded: each topology at rest, and some that are disturbed while clients use them."""

from __future__ import annotations

import functools
import random
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from podlink import StatefulExecutor, sync
from podlink.domain import keys
from proofs.workload import NAMESPACE, Maker, Plan
from sandbox.redis_cluster import ClusterSet, slot_of
from sandbox.redis_sentinel import SentinelSet
from sandbox.redis_servers import UNREACHABLE, RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from store.harness import Topology

Disturb: TypeAlias = "Callable[[Topology, Plan, random.Random], None]"
"""Disturbs a topology once, while a plan is carried out."""

LOBBY: Final = "lobby"
EMPTY: Final = "empty"
READY: Final = {LOBBY: frozenset({0, 1, 2}), EMPTY: frozenset[int]()}
"""Service -> its pods that are Ready. Each has another one, which is not."""

_NOT_READY: Final = 3
# No scene wants a failover, and a busy machine must not cause one.
_NEVER_SECONDS: Final = 60
_STALL_SECONDS: Final = 0.04


class Scene(NamedTuple):
    """A topology, and what happens to it meanwhile.

    Attributes:
        make: makes the topology, to be entered; the scenes that share it may share what it makes.
        disturb: done to it over and over while clients use it; None: nothing.
        pace_seconds: between two disturbances, at most.
        timeout_seconds: of the executors. At rest no call is to fail, however busy the machine.
        steps: calls of each client in a round.
        pause_seconds: of each client between two calls, at most; it spreads a round over the disturbances.
    """

    make: Callable[[], Topology]
    disturb: Disturb | None = None
    pace_seconds: float = 0.0
    timeout_seconds: float = 30.0
    steps: int = 6
    pause_seconds: float = 0.0


def cut_connections(topology: Topology, _plan: Plan, _rng: random.Random) -> None:
    """Close every client's connection: calls under way end without an answer, applied or not."""
    for server in topology.primaries():
        server.ask("CLIENT", "KILL", "TYPE", "normal")


def forget_scripts(topology: Topology, _plan: Plan, _rng: random.Random) -> None:
    """Have the servers forget all scripts: calls are answered NOSCRIPT, and sent again."""
    for server in topology.primaries():
        server.ask("SCRIPT", "FLUSH")


def stall(topology: Topology, _plan: Plan, _rng: random.Random) -> None:
    """Stop a server for longer than a call may take: calls that were given up are applied when it goes on."""
    for server in topology.primaries():
        server.freeze()
        try:
            threading.Event().wait(_STALL_SECONDS)
        finally:
            server.thaw()


def move_slot(topology: Topology, plan: Plan, rng: random.Random) -> None:
    """Move a link's slot to another server, key by key: for a while its two keys are apart."""
    assert isinstance(topology, ClusterSet)
    slot = slot_of(keys.link_key(NAMESPACE, rng.choice(plan.uids), plan.service))
    source = topology.primary_of_slot(slot)
    target = rng.choice([server for server in topology.primaries() if server is not source])
    topology.open_slot(slot, target)
    while topology.carry_keys(slot, target, count=1):
        pass
    topology.close_slot(slot, target)


def _cluster() -> ClusterSet:
    return ClusterSet(node_timeout_seconds=_NEVER_SECONDS)


def _valkey() -> RedisServer:
    return RedisServer("valkey")


SCENES: Final[Mapping[str, Scene]] = {
    "valkey": Scene(_valkey),
    "redis": Scene(lambda: RedisServer("redis")),
    "sentinel": Scene(lambda: SentinelSet(down_after_seconds=_NEVER_SECONDS)),
    "cluster": Scene(_cluster),
    "valkey, scripts forgotten": Scene(_valkey, forget_scripts, 0.004, steps=12, pause_seconds=0.002),
    "valkey, connections cut": Scene(_valkey, cut_connections, 0.01, steps=12, pause_seconds=0.004),
    "valkey, stalled": Scene(_valkey, stall, 0.04, timeout_seconds=0.02, steps=12, pause_seconds=0.01),
    "cluster, scripts forgotten": Scene(_cluster, forget_scripts, 0.01, steps=12, pause_seconds=0.004),
    "cluster, connections cut": Scene(_cluster, cut_connections, 0.02, steps=12, pause_seconds=0.006),
    "cluster, slots moving": Scene(_cluster, move_slot, 0.005, steps=12, pause_seconds=0.012),
}

AT_REST: Final = tuple(name for name, scene in SCENES.items() if scene.disturb is None)


def makers(scene: Scene, url: str) -> Sequence[Maker]:
    """The executors of three processes."""
    seconds = scene.timeout_seconds
    asynchronous = functools.partial(StatefulExecutor.from_url, url, timeout_seconds=seconds)
    return [asynchronous, asynchronous, functools.partial(sync.StatefulExecutor.from_url, url, timeout_seconds=seconds)]


def furnish(topology: Topology) -> None:
    """Leave nothing in a topology but its services; it knows no script either."""
    with topology.client() as client:
        client.flushall()
    with sync.StatefulExecutor.from_url(topology.url, timeout_seconds=30) as executor:
        for service, pods in READY.items():
            for pod in pods:
                executor.set_service_state(NAMESPACE, service, pod, "Ready")
            executor.set_service_state(NAMESPACE, service, _NOT_READY, "Draining")
    for server in topology.primaries():
        server.ask("SCRIPT", "FLUSH")


@contextmanager
def disturbed(scene: Scene, topology: Topology, plan: Plan) -> Iterator[None]:
    """Disturb a topology for as long as the block takes. What goes wrong with that is raised at its end."""
    if scene.disturb is None:
        yield
        return
    disturb, over, problems = scene.disturb, threading.Event(), list[BaseException]()
    rng = random.Random(f"{plan.seed} disturbances")

    def go_on() -> None:
        while not over.wait(rng.random() * scene.pace_seconds):
            try:
                disturb(topology, plan, rng)
            except UNREACHABLE:  # it disturbs itself too
                continue
            except BaseException as problem:  # noqa: BLE001 - it is raised where it is heard
                problems.append(problem)
                return

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if problems:
        raise problems[0]
