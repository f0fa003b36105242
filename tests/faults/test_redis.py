"""Redis goes away, hangs, forgets: the operator stays up, says so, and everything is right again by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cluster.harness import NO_LINK, Kube, Wire, disagreement
from cluster.operators import Operator
from sandbox.processes import eventually

if TYPE_CHECKING:
    from sandbox.redis_servers import RedisServer


def link_some(kube: Kube) -> None:
    """PodLinks of each kind that holds a link, all Linked."""
    for name, spec in {
        "named": {"podId": 1},
        "picked": {},
        "set": {"podId": 0, "policy": "Set"},
        "absent": {"podId": 1, "policy": "IfAbsent"},
    }.items():
        kube.link(name, **spec)
        eventually(lambda name=name: kube.report(name)[:2], ("Linked", "Linked"))


UNTOUCHED = ("set", "absent")
"""Those of them that nobody has to do with while Redis is away."""


def versions(kube: Kube) -> dict[str, str]:
    return {link["metadata"]["name"]: link["metadata"]["resourceVersion"] for link in kube.list("podlinks")}


def await_outage(operator: Operator, reason: str) -> None:
    """Wait until /readyz says that of Redis."""
    operator.await_reason(reason)
    assert operator.healthz() == (200, "ok\n")


def use_without_redis(kube: Kube) -> None:
    """What users do while Redis is away, and what the operator must say of it, once."""
    linked, patches = versions(kube), kube.patches()
    kube.link("meanwhile", podId=1)
    eventually(lambda: kube.report("meanwhile"), ("Pending", "RedisUnavailable", None))
    assert kube.message("meanwhile") == "Redis cannot be reached; the link waits for its return"
    kube.delete("podlinks", "named")
    eventually(lambda: kube.report("named"), ("Linked", "RedisUnavailable", 1))
    assert kube.message("named") == "Redis cannot be reached; the release waits for its return"
    kube.scale("lobby", 3)
    eventually(lambda: kube.ready_replicas("lobby"), 3)
    for name in ("picked", "meanwhile", "named"):
        kube.patch("podlinks", name, {"metadata": {"labels": {"touched": "true"}}})
    touched = versions(kube)

    # When the operator has got as far as this one, it has looked at those before it.
    kube.link("afterwards", podId=2)
    eventually(lambda: kube.report("afterwards"), ("Pending", "RedisUnavailable", None))
    now = versions(kube)
    assert {name: now[name] for name in touched} == touched
    assert {name for name in linked if now[name] == linked[name]} == set(UNTOUCHED)
    assert kube.get("podlinks", "named")["metadata"]["finalizers"] == ["podlink.io/release"]
    # Three of ours, and one for each of the three that wait.
    assert kube.patches() - patches <= 3 + 3


def await_recovery(kube: Kube, wire: Wire, operator: Operator, before: dict[str, str]) -> None:
    eventually(operator.readyz, (200, "ok\n"))
    eventually(lambda: kube.report("meanwhile"), ("Linked", "Linked", 1))
    eventually(lambda: kube.report("afterwards"), ("Linked", "Linked", 2))
    eventually(lambda: kube.get("podlinks", "named"), None)
    eventually(lambda: disagreement(kube, wire), {})
    assert wire.link("named") == NO_LINK
    assert wire.states() == {"0": "Ready", "1": "Ready", "2": "Ready"}
    after = versions(kube)
    assert {name: after[name] for name in UNTOUCHED} == {name: before[name] for name in UNTOUCHED}


@pytest.mark.parametrize("redis_server", ["with its data", "empty"], indirect=True)
def test_redis_stops_and_comes_back(kube: Kube, wire: Wire, operator: Operator, redis_server: RedisServer) -> None:
    link_some(kube)
    before = versions(kube)
    redis_server.stop()
    await_outage(operator, "Redis is unreachable")
    use_without_redis(kube)

    redis_server.start()
    await_recovery(kube, wire, operator, before)


def test_redis_hangs_and_goes_on(kube: Kube, wire: Wire, operator: Operator, redis_server: RedisServer) -> None:
    link_some(kube)
    before = versions(kube)
    redis_server.freeze()
    await_outage(operator, "Redis did not answer within 3 seconds")
    use_without_redis(kube)

    redis_server.thaw()
    await_recovery(kube, wire, operator, before)


def test_redis_loses_all_data(kube: Kube, wire: Wire, operator: Operator, redis_server: RedisServer) -> None:
    link_some(kube)
    before = wire.keys()
    assert len(before) == 11, before

    redis_server.flush()
    eventually(wire.keys, before)
    assert disagreement(kube, wire) == {}
    assert kube.report("named") == ("Linked", "Linked", 1)
    eventually(lambda: kube.events("named"), [("Normal", "Linked"), ("Warning", "LinkDrifted")])
    # What nobody can bring back, somebody should know of.
    told = "Redis lost its data, or is another one: links that other clients made are gone"
    assert [entry["level"] for entry in operator.log() if entry["message"] == told] == ["warning"]
    assert operator.metric("podlink_redis_data_losses_total") == 1


def test_redis_forgets_the_scripts(kube: Kube, wire: Wire, operator: Operator) -> None:
    link_some(kube)
    warnings = [entry for entry in operator.log() if entry["level"] != "info"]
    for number in range(10):
        wire.redis.script_flush()
        kube.link(f"after-{number}", podId=number % 2)
    wire.redis.script_flush()
    kube.scale("lobby", 3)
    for number in range(10):
        eventually(lambda name=f"after-{number}": kube.report(name), ("Linked", "Linked", number % 2))

    wire.redis.script_flush()
    kube.unlink("named")
    eventually(lambda: kube.ready_replicas("lobby"), 3)
    eventually(lambda: disagreement(kube, wire), {})
    assert [entry for entry in operator.log() if entry["level"] != "info"] == warnings
    assert operator.readyz() == (200, "ok\n")
