"""The operator as it runs in a cluster: from the image, as the chart's pod, with the rights of the chart's account."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest

from cluster.harness import Kube, Wire, stateful_set
from cluster.operators import Operator
from sandbox.helm import Release, settings
from sandbox.kubelet import Container
from sandbox.processes import eventually
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
NOT_OURS = ("crds.install=false", "finalizerPolicy=disabled", "rbac.aggregate=false")
BY_SECRET = settings(f"redis.urlSecret.name={SECRET}")


@contextlib.contextmanager
def restricted_release(cluster: Cluster, helm: Helm) -> Iterator[Release]:
    """A release in a namespace of its own, where nothing gets in but what is restricted."""
    namespace = cluster.create_namespace("podlink")
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    # Releases share the cluster, where its rights need a name of their own.
    values = settings(*NOT_OURS, f"fullnameOverride={namespace}")
    try:
        with Release(helm, cluster, namespace, *values) as release:
            yield release
    finally:
        cluster.delete_namespace(namespace)


def pod_of(release: Release) -> dict[str, Any]:
    """The one pod that came of it."""
    pods = ("get", "pods", "-l", "app.kubernetes.io/name=podlink", "-n", release.namespace)
    (pod,) = release.cluster.kubectl_json(*pods)["items"]
    return pod


def put_secret(release: Release, **content: str) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": content}
    release.cluster.apply(secret, namespace=release.namespace)


@contextlib.contextmanager
def started(release: Release, image: Image, *flags: str) -> Iterator[tuple[Container, Operator]]:
    """The operator of the release, installed with these flags, when it listens."""
    release.install(*flags)
    with Container(release.cluster, pod_of(release), image, environment=ANY_PORT) as container:
        operator = Operator(container.process)
        try:
            operator.await_start()
            yield container, operator
        finally:
            print(container.process.log_tail(100))  # noqa: T201 - pytest shows it beside a failure, and only there


@pytest.fixture
def release(cluster: Cluster, helm: Helm) -> Iterator[Release]:
    with restricted_release(cluster, helm) as release:
        yield release


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer(password="a password: 100 % @/") as server:
        yield server


@pytest.fixture(scope="module")
def running(
    image: Image, cluster: Cluster, helm: Helm, redis_server: RedisServer
) -> Iterator[tuple[Container, Operator]]:
    with restricted_release(cluster, helm) as release:
        put_secret(release, url=redis_server.url)
        with started(release, image, *BY_SECRET) as running:
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


def test_it_ends_in_order_and_in_time(image: Image, release: Release, redis_server: RedisServer) -> None:
    put_secret(release, url=redis_server.url)
    with started(release, image, *BY_SECRET) as (container, operator):
        operator.await_ready()

        begun = time.monotonic()
        assert container.stop() == 0
        assert time.monotonic() - begun < STOP_SECONDS
        assert not operator.faults()


def test_it_waits_for_its_secret(image: Image, release: Release, redis_server: RedisServer) -> None:
    with started(release, image, *BY_SECRET) as (container, operator):
        operator.await_reason(f"/etc/podlink/secrets/{SECRET}/url")

        put_secret(release, url=redis_server.url)
        container.sync()
        operator.await_ready()

        put_secret(release, url=redis_server.url.removesuffix("/0") + "/1")
        container.sync()
        assert container.process.wait(STOP_SECONDS) == 0


def test_its_own_valkey_needs_no_more_than_a_directory(image: Image, release: Release) -> None:
    with started(release, image, *settings("redis.embedded=true")) as (container, operator):
        operator.await_ready()
        assert container.stop() == 0

        container.start()
        again = Operator(container.process)
        again.await_start()
        again.await_ready()
