"""`podlink release`: PodLinks that no operator serves any more lose their link and their finalizer."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from cluster.harness import NO_LINK, Kube, Wire, podlink
from cluster.operators import running_operator
from podlink import sync
from sandbox.processes import eventually, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.cluster import Cluster
    from sandbox.redis_servers import RedisServer


@contextmanager
def without_the_finalizer_policy(kube: Kube) -> Iterator[None]:
    """Take a namespace out of the policy, as the chart does with those that are not served."""
    if not kube.cluster.serves_policies():
        yield
        return

    def match(resources: dict[str, Any] | None) -> None:
        patch = json.dumps({"spec": {"matchResources": resources}})
        kube.kubectl("patch", "mutatingadmissionpolicybinding", "podlink-finalizer", "--type=merge", "-p", patch)

    def applies() -> bool:
        created = kube.kubectl(
            "create", "--dry-run=server", "-f", "-", "-o", "json", input=json.dumps(podlink("dry-run"))
        )
        return "finalizers" in json.loads(created)["metadata"]

    others = {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": [kube.namespace]}
    match({"namespaceSelector": {"matchExpressions": [others]}})
    until(lambda: not applies(), 60, "the policy to leave the namespace alone")
    yield
    match(None)


@pytest.fixture(scope="module")
def left(cluster: Cluster, redis_server: RedisServer) -> Iterator[Kube]:
    """A namespace that an operator served before, and a service of two pods there."""
    name = cluster.create_namespace("left")
    with Kube(cluster, name) as kube, without_the_finalizer_policy(kube):
        kube.stateful_set("lobby", 2)
        yield kube
        kube.clear()
    cluster.delete_namespace(name)


@pytest.fixture
def wire(left: Kube, redis_server: RedisServer) -> Iterator[Wire]:
    with redis_server.client() as client:
        yield Wire(client, left.namespace)


@pytest.fixture
def run(left: Kube, redis_server: RedisServer) -> Run:
    return Run(left, redis_server.url)


class Run:
    """Runs `podlink release` for the namespace, with the administrator's kubeconfig."""

    def __init__(self, left: Kube, url: str) -> None:
        self._left = left
        self._url = url

    def __call__(self, *flags: str, redis: bool = True) -> tuple[int, list[str], str]:
        """Exit code, lines of standard output in order, standard error."""
        where = ("--redis-url", self._url) if redis else ()
        argv = [sys.executable, "-m", "podlink", "release", "--namespace", self._left.namespace, *where, *flags]
        environment = dict(self._left.cluster.environment)
        ran = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
        return ran.returncode, sorted(ran.stdout.splitlines()), ran.stderr


def serve(left: Kube, redis_server: RedisServer) -> None:
    """Have an operator link two users and adopt the link of a third, and stop it."""
    with sync.StatefulExecutor.from_url(redis_server.url) as gateway:
        gateway.set_linked_pod(left.namespace, "guest", "lobby", 1)
    with running_operator(left.cluster, "--redis-url", redis_server.url, "--namespace", left.namespace):
        left.link("first", podId=0)
        left.link("second", podId=1)
        left.link("guest", policy="IfAbsent")
        eventually(lambda: left.report("first"), ("Linked", "Linked", 0))
        eventually(lambda: left.report("second"), ("Linked", "Linked", 1))
        eventually(lambda: left.report("guest")[0], "Linked")


def line(left: Kube, name: str, done: str) -> str:
    return f"podlink/{name} in namespace {left.namespace}: {done}"


def test_links_of_their_own_and_finalizers_go_after_a_dry_run_that_changed_nothing(
    left: Kube, redis_server: RedisServer, wire: Wire, run: Run
) -> None:
    serve(left, redis_server)
    left.delete("podlinks", "second")
    # Somebody else moved the user meanwhile.
    with sync.StatefulExecutor.from_url(redis_server.url) as gateway:
        gateway.set_linked_pod(left.namespace, "second", "lobby", 0)
    lines = [
        line(left, "first", "link to pod 0 released, finalizer removed"),
        line(left, "guest", "no link of its own, finalizer removed"),
        line(left, "second", "no link of its own, finalizer removed"),
    ]
    before = left.list("podlinks")
    assert run("--dry-run") == (0, [f"{each} (dry run)" for each in lines], "")
    assert left.list("podlinks") == before
    assert wire.link("first") == ("0", "0")

    assert run() == (0, lines, "")
    assert wire.link("first") == NO_LINK
    assert (wire.link("guest"), wire.link("second")) == (("1", "1"), ("0", "0"))
    assert left.get("podlinks", "second") is None
    left.unlink("first")
    left.unlink("guest")
    code, out, error = run()
    assert (code, out) == (0, [])
    assert "nothing to release" in error


def test_what_a_running_operator_serves_is_refused_and_links_are_kept_when_asked_for(
    left: Kube, redis_server: RedisServer, wire: Wire, run: Run
) -> None:
    flags = ("--redis-url", redis_server.url, "--leader-elect", "--lease-namespace", left.namespace)
    with running_operator(left.cluster, *flags, "--namespace", left.namespace) as operator:
        until(lambda: operator.metric("podlink_leader") == 1, 30, "the operator to lead")
        left.link("served", podId=0)
        eventually(lambda: left.report("served"), ("Linked", "Linked", 0))
        code, out, error = run()
        assert (code, out) == (1, [])
        assert f"an operator serves {left.namespace} (Lease {left.namespace}/podlink, held by " in error
        assert wire.link("served") == ("0", "0")
        assert run("--force", "--dry-run")[0] == 0
    # It gave its Lease back.
    assert run("--keep-links", redis=False) == (0, [line(left, "served", "link kept, finalizer removed")], "")
    assert wire.link("served") == ("0", "0")
    left.unlink("served")
