"""What only servers can refuse (a selector, a password, a cluster without the type): the operator says what to do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cluster.harness import Kube, Wire
from cluster.operators import start_operator
from sandbox.processes import eventually
from sandbox.redis_servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.cluster import Cluster
    from sandbox.control_plane import ControlPlane


@pytest.fixture(scope="module")
def guarded() -> Iterator[RedisServer]:
    """A Redis that wants a password."""
    with RedisServer(password="hunter2") as server:
        yield server


def test_a_selector_that_the_api_server_refuses(cluster: Cluster, guarded: RedisServer) -> None:
    with start_operator(cluster, "--redis-url", guarded.url, "--pod-selector", "app in (") as operator:
        assert operator.process.wait(60) == 2
        last = operator.process.log_path.read_text().splitlines()[-1]

    assert last.startswith("Error: --pod-selector 'app in (': ")
    assert "unable to parse requirement" in last


@pytest.mark.parametrize(
    ("user", "answer"),
    [
        ("", "Authentication required"),
        (":letmein@", "invalid username-password pair"),
        ("nobody:letmein@", "invalid username-password pair"),
    ],
    ids=["none", "wrong", "unknown-user"],
)
def test_a_redis_that_refuses_the_password(
    cluster: Cluster, namespace: str, guarded: RedisServer, user: str, answer: str
) -> None:
    url = f"redis://{user}127.0.0.1:{guarded.port}/0"
    with start_operator(cluster, "--namespace", namespace, PODLINK_REDIS_URL=url) as operator:
        said = operator.await_reason(answer)
        log = json.dumps(operator.log())

        assert f"--redis-url redis://127.0.0.1:{guarded.port}/0: " in said
        assert "letmein" not in said + log
        # It stays, for Redis may be given that password or user yet.
        assert operator.process.alive


def test_a_redis_with_its_password(cluster: Cluster, namespace: str, guarded: RedisServer) -> None:
    with (
        Kube(cluster, namespace) as kube,
        guarded.client() as client,
        start_operator(cluster, "--redis-url", guarded.url, "--namespace", namespace) as operator,
    ):
        operator.await_start()
        operator.await_ready()
        kube.stateful_set("lobby", 1)
        eventually(Wire(client, namespace).states, {"0": "Ready"})
        assert "hunter2" not in operator.process.log_path.read_text()


def test_a_cluster_without_the_type(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("delete", "crd", "podlinks.podlink.io")
    try:
        with (
            RedisServer() as server,
            start_operator(control_plane, "--redis-url", server.url, "--namespace", namespace) as operator,
        ):
            operator.await_reason(
                "the type PodLink is not installed in this cluster: kubectl apply -f crds/podlinks.yaml"
            )
            control_plane.install_podlink()
            control_plane.await_podlinks()

            operator.await_ready()
            with Kube(control_plane, namespace) as kube:
                kube.stateful_set("lobby", 1)
                kube.link("late", podId=0)
                eventually(lambda: kube.report("late"), ("Linked", "Linked", 0))
    finally:
        control_plane.install_podlink()
        control_plane.await_podlinks()
