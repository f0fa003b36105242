"""However many clients use a link at the same time, it is as if they had done so one after the other.

Each test records some histories of concurrent processes and checks them; `python -m proofs.histories` does more of the
same. Clients with a read cache (`cache=True`) are left out: what they read may be stale for a bounded time, which is
what they are told.
"""

from __future__ import annotations

import functools
import itertools
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from proofs import wrong_clients
from proofs.histories import Recording, Tally, drawn, record
from proofs.linearizability import Call
from proofs.register import Asked
from proofs.scenes import AT_REST, SCENES
from proofs.workload import Team
from store.harness import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from podlink import sync
    from proofs.scenes import Scene
    from store.harness import Topology

HISTORIES = 24
ROUNDS_TO_BE_CAUGHT = 200


@pytest.fixture(scope="module")
def team() -> Iterator[Team]:
    with Team() as running:
        yield running


@pytest.fixture(scope="module")
def topology_of() -> Iterator[Callable[[Scene], Topology]]:
    """The topology of a scene, which it shares with other scenes."""
    running: dict[Callable[[], Topology], Topology] = {}
    with ExitStack() as stack:

        def get(scene: Scene) -> Topology:
            if scene.make not in running:
                topology = running[scene.make] = scene.make()
                stack.enter_context(topology)
            return running[scene.make]

        yield get


@pytest.mark.parametrize("name", SCENES)
def test_each_link_is_a_register(name: str, topology_of: Callable[[Scene], Topology], team: Team) -> None:
    if name == "redis":
        need("redis")
    tally = record(SCENES[name], topology_of(SCENES[name]), team, count=HISTORIES)
    assert tally.failures == [], "\n".join(tally.failures)
    assert tally.undecided == 0
    # Where connections are cut or stall, a busy machine has many calls refused, and those tell nothing.
    assert tally.calls > (10 if name in AT_REST else 3) * HISTORIES
    if name in AT_REST:
        assert (tally.unanswered, tally.refused) == (0, 0)
    if name.endswith(("cut", "stalled")):
        assert tally.unanswered > 0


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (wrong_clients.ReadsThenWrites, "valkey"),
        (wrong_clients.DeletesWhatItRead, "valkey"),
        (wrong_clients.Remembers, "valkey"),
        (wrong_clients.SendsAgain, "valkey, stalled"),
        (wrong_clients.DeniesEverything, "valkey, stalled"),
    ],
)
def test_wrong_clients_are_caught(
    wrong: type[sync.StatefulExecutor], name: str, topology_of: Callable[[Scene], Topology], team: Team
) -> None:
    scene = SCENES[name]
    topology = topology_of(scene)
    make = functools.partial(wrong.from_url, topology.url, timeout_seconds=scene.timeout_seconds)
    recording = Recording(scene, topology, team, wrong=[make, make, make], forms=("single",))
    tally = Tally()
    for tally in itertools.islice(recording.rounds(seed=0), ROUNDS_TO_BE_CAUGHT):
        if tally.failures:
            break
    assert tally.failures, f"{wrong.__name__} got away with it: {tally}"
    assert "of which no order explains these" in tally.failures[0]


def test_evidence_is_drawn_as_time_lines() -> None:
    calls = [
        Call("task 1", Asked("set_linked_pod", 5, -1), None, 1_000, 21_000),
        Call("task 2", Asked("remove_linked_pod"), None, 11_000, None),
        Call("task 3", Asked("get_linked_pod"), None, 31_000, 41_000, place=2),
    ]
    first, second, third = drawn(calls)
    assert first.split() == [
        "task",
        "1",
        f"[{'-' * 19}]",
        "set_linked_pod(5,",
        "seconds=-1)",
        "=",
        "None",
        "0..20",
        "us",
    ]
    assert second.index("[") > first.index("[")
    assert second.split()[2].endswith("->")
    assert "no answer" in second
    assert third.index("[") > first.index("]")
    assert "place 2 of a pipeline" in third
