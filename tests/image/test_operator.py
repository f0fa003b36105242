"""The operator as it runs in a cluster: from the image, as the chart's pod, with the rights of the chart's account."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from cluster.harness import Kube, Wire, eventually, stateful_set
from cluster.operators import Operator
from sandbox.kubelet import Container
from sandbox.redis_servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.cluster import Cluster
    from sandbox.helm import Helm
    from sandbox.images import Image

pytestmark = pytest.mark.timeout(900)  # whichever is the first builds the image

STOP_SECONDS = 20
SECRET = "redis-for-podlink"
# All containers share the host's ports.
ANY_PORT = {"PODLINK_HTTP_PORT": "0"}
# The cluster has the type, and the roles view, edit and admin are not ours to change.
RELEASE = ("crds.install=false", "finalizerPolicy=disabled", "rbac.aggregate=false")


class Installed:
    """The chart's objects in a namespace of their own, where nothing gets in but what is restricted."""

    def __init__(self, cluster: Cluster, helm: Helm) -> None:
        self._cluster = cluster
        self._helm = helm
        self.namespace = cluster.create_namespace("podlink")
        cluster.kubectl("label", "namespace", self.namespace, "pod-security.kubernetes.io/enforce=restricted")

    def pod(self, *values: str) -> dict[str, Any]:
        """Apply the chart with these values, and return the pod that comes of it."""
        flags = [word for value in (*RELEASE, *values) for word in ("--set", value)]
        self._objects = self._helm.objects(*flags, namespace=self.namespace)
        self._cluster.apply(*self._objects, namespace=self.namespace)
        self._cluster.kubectl("rollout", "status", "deployment/podlink", "-n", self.namespace, "--timeout=60s")
        (pod,) = self._cluster.kubectl_json("get", "pods", "-n", self.namespace)["items"]
        return pod

    def put_secret(self, **content: str) -> None:
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": content}
        self._cluster.apply(secret, namespace=self.namespace)

    def remove(self) -> None:
        items = {"apiVersion": "v1", "kind": "List", "items": self._objects}
        self._cluster.kubectl("delete", "--ignore-not-found", "-f", "-", input=json.dumps(items))
        self._cluster.delete_namespace(self.namespace)


@contextlib.contextmanager
def installed(cluster: Cluster, helm: Helm) -> Iterator[Installed]:
    chart = Installed(cluster, helm)
    yield chart
    chart.remove()


@contextlib.contextmanager
def started(pod: dict[str, Any], image: Image, cluster: Cluster) -> Iterator[tuple[Container, Operator]]:
    """The operator of a pod, when it listens."""
    with Container(cluster, pod, image, environment=ANY_PORT) as container:
        operator = Operator(container.process)
        try:
            operator.await_start()
            yield container, operator
        finally:
            print(container.process.log_tail(100))  # noqa: T201 - pytest shows it beside a failure, and only there


@pytest.fixture
def chart(cluster: Cluster, helm: Helm) -> Iterator[Installed]:
    with installed(cluster, helm) as chart:
        yield chart


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer(password="a password: 100 % @/") as server:
        yield server


@pytest.fixture(scope="module")
def running(
    image: Image, cluster: Cluster, helm: Helm, redis_server: RedisServer
) -> Iterator[tuple[Container, Operator]]:
    with installed(cluster, helm) as chart:
        chart.put_secret(url=redis_server.url)
        with started(chart.pod(f"redis.urlSecret.name={SECRET}"), image, cluster) as running:
            running[1].await_ready()
            yield running


@pytest.fixture
def kube(cluster: Cluster, namespace: str) -> Iterator[Kube]:
    with Kube(cluster, namespace) as client:
        yield client


def test_pods_reach_redis_and_podlinks_get_linked(
    running: tuple[Container, Operator], kube: Kube, redis_server: RedisServer
) -> None:
    _, operator = running
    kube.create("statefulsets", stateful_set("lobby", 2))
    kube.link("player-42", podId=1)

    with redis_server.client() as client:
        wire = Wire(client, kube.namespace)
        eventually(wire.service, ({"0": "Ready", "1": "Ready"}, "Available"))
        eventually(lambda: kube.report("player-42"), ("Linked", "Linked", 1))
        assert wire.link("player-42") == ("1", "1")
        kube.unlink("player-42")
        assert wire.link("player-42") == (None, None)
    assert operator.readyz() == (200, "ok\n")
    assert not operator.faults()


def test_people_can_look_around_in_its_pod(
    running: tuple[Container, Operator], kube: Kube, redis_server: RedisServer
) -> None:
    container, _ = running
    kube.create("statefulsets", stateful_set("lobby", 1))
    with redis_server.client() as client:
        eventually(lambda: Wire(client, kube.namespace).states(), {"0": "Ready"})

    for program in ("podlink", "kubectl-podlink"):
        shown = container.execute(program, "status", "--namespace", kube.namespace)
        assert shown.returncode == 0, shown.stderr
        assert "lobby" in shown.stdout


def test_it_ends_in_order_and_in_time(
    image: Image, cluster: Cluster, chart: Installed, redis_server: RedisServer
) -> None:
    chart.put_secret(url=redis_server.url)
    with started(chart.pod(f"redis.urlSecret.name={SECRET}"), image, cluster) as (container, operator):
        operator.await_ready()

        begun = time.monotonic()
        assert container.stop() == 0
        assert time.monotonic() - begun < STOP_SECONDS
        assert not operator.faults()


def test_it_waits_for_its_secret(image: Image, cluster: Cluster, chart: Installed, redis_server: RedisServer) -> None:
    with started(chart.pod(f"redis.urlSecret.name={SECRET}"), image, cluster) as (container, operator):
        eventually(lambda: operator.readyz()[0], 503)
        assert f"/etc/podlink/secrets/{SECRET}/url" in operator.readyz()[1]

        chart.put_secret(url=redis_server.url)
        container.sync()
        operator.await_ready()

        chart.put_secret(url=redis_server.url.removesuffix("/0") + "/1")
        container.sync()
        assert container.process.wait(STOP_SECONDS) == 0


def test_its_own_valkey_needs_no_more_than_a_directory(image: Image, cluster: Cluster, chart: Installed) -> None:
    with started(chart.pod("redis.embedded=true"), image, cluster) as (container, operator):
        operator.await_ready()
        assert container.stop() == 0

        container.start()
        again = Operator(container.process)
        again.await_start()
        again.await_ready()
