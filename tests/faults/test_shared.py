"""Others are at work too: users who edit while the operator reports, clients with values of their own, a full Redis."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from cluster.harness import NO_LINK, Kube, Wire
from sandbox.processes import eventually

if TYPE_CHECKING:
    from cluster.operators import Operator
    from faults.conftest import Start

RACERS = 60


def test_an_edit_that_races_the_report_is_followed(kube: Kube, wire: Wire, operator: Operator) -> None:
    """Each edit comes as soon as its PodLink is created, so that many fall between the link and its report."""

    def create_and_edit(number: int) -> None:
        kube.link(f"racer-{number}", podId=0)
        kube.edit(f"racer-{number}", podId=1)

    with ThreadPoolExecutor(8) as users:
        list(users.map(create_and_edit, range(RACERS)))
    eventually(
        lambda: {kube.report(f"racer-{number}") for number in range(RACERS)}, {("Linked", "Linked", 1)}, timeout=40
    )
    assert {wire.link(f"racer-{number}") for number in range(RACERS)} == {("1", "1")}


def test_a_deletion_that_races_the_report_leaves_nothing(kube: Kube, wire: Wire, operator: Operator) -> None:
    def create_and_delete(number: int) -> None:
        kube.link(f"racer-{number}", podId=0)
        kube.delete("podlinks", f"racer-{number}")

    with ThreadPoolExecutor(8) as users:
        list(users.map(create_and_delete, range(RACERS)))
    eventually(lambda: kube.list("podlinks"), [], timeout=40)
    assert {wire.link(f"racer-{number}") for number in range(RACERS)} == {NO_LINK}
    assert wire.loads() == {}


def test_values_of_other_clients_stop_nothing(kube: Kube, wire: Wire, start: Start) -> None:
    prefix = f"sf:{{{kube.namespace}"
    wire.redis.hset(f"{prefix}:state:theirs}}", "pod-a", "Ready")
    wire.redis.set(f"{prefix}:lk:spoilt}}lobby", "pod-a")
    kube.link("spoilt", podId=1)
    with start("--resync-seconds", "1") as operator:
        operator.await_sweeps(2)
        kube.link("sound", podId=0)
        eventually(lambda: kube.report("sound"), ("Linked", "Linked", 0))
        wire.redis.hset(f"{prefix}:state:lobby}}", "7", "Ready")
        eventually(wire.states, {"0": "Ready", "1": "Ready"})
        assert wire.states("theirs") == {"pod-a": "Ready"}

        wire.redis.delete(f"{prefix}:lk:spoilt}}lobby")
        eventually(lambda: kube.report("spoilt"), ("Linked", "Linked", 1))


def test_a_redis_that_takes_no_writes_is_away(kube: Kube, wire: Wire, operator: Operator) -> None:
    wire.redis.config_set("maxmemory", 1)
    eventually(lambda: operator.readyz()[0], 503)
    assert "command not allowed when used memory > 'maxmemory'" in operator.readyz()[1]
    sweeps = operator.metric('podlink_sweep_seconds_count{cause="redis_return"}')
    kube.link("late", podId=1)
    eventually(lambda: kube.report("late"), ("Pending", "RedisUnavailable", None))

    wire.redis.config_set("maxmemory", 0)
    eventually(lambda: kube.report("late"), ("Linked", "Linked", 1))
    eventually(operator.readyz, (200, "ok\n"))
    eventually(lambda: operator.metric('podlink_sweep_seconds_count{cause="redis_return"}'), sweeps + 1)
