"""An operator with rights in two namespaces, as the chart gives them: what goes wrong in one leaves the other alone."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cluster.harness import NO_LINK, Kube, RequestError, Wire, eventually
from cluster.operators import Operator, start_operator
from sandbox.cluster import Cluster
from sandbox.helm import settings
from sandbox.processes import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from sandbox.helm import Helm
    from sandbox.redis_servers import RedisServer

RBAC = {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "ServiceAccount"}
POLICY = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}


class Installation:
    """The chart's rights in the namespaces `games`, `chat` and `shop`, and an operator that has no others.

    The namespace `shop` does not exist yet.
    """

    def __init__(self, cluster: Cluster, helm: Helm, home: str, directory: Path, redis_server: RedisServer) -> None:
        self.cluster = cluster
        self.redis_server = redis_server
        self._helm = helm
        self._home = home
        self._kubeconfig = directory / "kubeconfig"
        self.games = Kube(cluster, cluster.create_namespace("games"))
        self.chat = Kube(cluster, cluster.create_namespace("chat"))
        self.shop = Kube(cluster, f"shop-{home}")

    def grant(self, *values: str) -> None:
        """Apply the chart's roles and policy, and get a token."""
        names = [kube.namespace for kube in (self.games, self.chat, self.shop)]
        served = f"watch.namespaces={{{','.join(names)}}}"
        self._values = (f"fullnameOverride={self._home}", "redis.embedded=true", "crds.install=false", served, *values)
        self._objects = [
            each
            for each in self._helm.objects(*settings(*self._values), namespace=self._home)
            if each["kind"] in RBAC | POLICY and "podlink:" not in each["metadata"]["name"]
        ]
        self.grant_again()
        token = self.cluster.kubectl("create", "token", self._home, "-n", self._home).stdout.strip()
        self.cluster.write_kubeconfig(self._kubeconfig, {"token": token})

    def grant_again(self) -> None:
        """Apply the roles where there are namespaces for them."""
        shop = not is_gone(self.cluster, self.shop.namespace)
        self.cluster.apply(
            *(each for each in self._objects if shop or each["metadata"].get("namespace") != self.shop.namespace)
        )

    def withdraw(self, kube: Kube) -> None:
        kube.kubectl("delete", "rolebinding", self._home)

    def start(self) -> AbstractContextManager[Operator]:
        flags = ["--redis-url", self.redis_server.url]
        for kube in (self.games, self.chat, self.shop):
            flags += ["--namespace", kube.namespace]
        return start_operator(self.cluster, *flags, KUBECONFIG=str(self._kubeconfig))

    def as_operator(self, namespace: str) -> Kube:
        """A namespace, with the operator's rights."""
        return Kube(Cluster(self._kubeconfig), namespace)

    def close_cluster_roles(self) -> None:
        """Take away what the chart has of the whole cluster."""
        for each in self._objects:
            if "namespace" not in each["metadata"]:
                self.cluster.kubectl("delete", each["kind"], each["metadata"]["name"], "--ignore-not-found")

    def close(self) -> None:
        self.close_cluster_roles()
        for kube in (self.games, self.chat, self.shop):
            if not is_gone(self.cluster, kube.namespace):
                self.cluster.delete_namespace(kube.namespace)


@pytest.fixture
def installation(
    cluster: Cluster, helm: Helm, namespace: str, tmp_path: Path, redis_server: RedisServer
) -> Iterator[Installation]:
    made = Installation(cluster, helm, namespace, tmp_path, redis_server)
    made.grant()
    yield made
    made.close()


@pytest.fixture
def games(installation: Installation) -> Kube:
    return installation.games


@pytest.fixture
def chat(installation: Installation) -> Kube:
    return installation.chat


@pytest.fixture
def chat_wire(redis_server: RedisServer, chat: Kube) -> Iterator[Wire]:
    with redis_server.client() as client:
        yield Wire(client, chat.namespace)


def failing(operator: Operator, kube: Kube, reason: str) -> float:
    return operator.metric(f'podlink_scope_failing{{reason="{reason}",scope="{kube.namespace}"}}')


def linked(kube: Kube, name: str) -> None:
    """See that the operator serves the namespace."""
    kube.link(name, podId=0)
    eventually(lambda: kube.report(name), ("Linked", "Linked", 0))


def faults(operator: Operator) -> list[str]:
    """What its log must not have; that it lacks rights is an error, and here they are taken away."""
    return [line for line in operator.faults() if "podlink.cluster.preflight" not in line]


def is_gone(cluster: Cluster, namespace: str) -> bool:
    return cluster.kubectl("get", "namespace", namespace, check=False).returncode != 0


def podlink(installation: Installation, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "podlink", *words]
    environment = dict(installation.cluster.environment)
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_namespace_without_rights_or_not_there_holds_up_no_other_and_is_served_when_that_is_mended(
    installation: Installation, games: Kube, chat: Kube, chat_wire: Wire
) -> None:
    shop = installation.shop
    for kube in (games, chat):
        kube.stateful_set("lobby", 1)
    chat_wire.redis.hset(f"sf:{{{chat.namespace}:state:lobby}}", mapping={"0": "Ready", "7": "Ready"})
    chat_wire.redis.hset(f"sf:{{{chat.namespace}:state:lobby}}rv", mapping={"0": "1", "7": "1"})
    installation.withdraw(chat)
    with installation.start() as operator:
        told = operator.await_reason(f"namespace {chat.namespace}: GET /api/v1/namespaces/{chat.namespace}/pods")
        assert f"podlink release --namespace {chat.namespace}" in told
        operator.await_reason(f"namespace {shop.namespace}: it does not exist; create it")
        linked(games, "player")
        assert (failing(operator, chat, "Forbidden"), failing(operator, shop, "NamespaceNotFound")) == (1, 1)
        assert failing(operator, games, "Forbidden") == 0
        # What could not be listed is not gone.
        assert chat_wire.states() == {"0": "Ready", "7": "Ready"}
        assert len(operator.said(f"namespace {chat.namespace} is not served")) == 1

        installation.cluster.kubectl("create", "namespace", shop.namespace)
        installation.grant_again()
        shop.stateful_set("lobby", 1)
        for kube in (chat, shop):
            linked(kube, "player")
        eventually(chat_wire.states, {"0": "Ready"})
        operator.await_ready()
        assert failing(operator, chat, "Forbidden") == failing(operator, shop, "NamespaceNotFound") == 0
        assert len(operator.said(f"namespace {chat.namespace} is served again")) == 1
        assert faults(operator) == []
        for kube in (games, chat, shop):
            kube.clear()
            eventually(lambda kube=kube: kube.list("podlinks"), [])


def test_a_namespace_with_podlinks_can_be_deleted_whether_the_operator_runs_or_starts_afterwards(
    installation: Installation, games: Kube, chat: Kube, redis_server: RedisServer
) -> None:
    with redis_server.client() as client:
        for kube in (games, chat):
            kube.stateful_set("lobby", 1)
        with installation.start() as operator:
            operator.await_start()
            for kube in (games, chat):
                linked(kube, "player")
                kube.link("waits", service="nowhere")
                eventually(lambda kube=kube: kube.report("waits")[1], "WaitingForService")
            chat.kubectl("delete", "namespace", chat.namespace, "--wait=false")
            until(lambda: is_gone(installation.cluster, chat.namespace), 60, "the namespace to be gone")
            assert faults(operator) == []
        games.kubectl("delete", "namespace", games.namespace, "--wait=false")
        until(lambda: not games.kubectl("get", "role", "-o", "name"), 30, "the role to be gone")
        assert Wire(client, games.namespace).link("player") == ("0", "0")
        with installation.start() as operator:
            operator.await_start()
            until(lambda: is_gone(installation.cluster, games.namespace), 60, "the namespace to be gone")
            assert faults(operator) == []
        for kube in (games, chat):
            assert Wire(client, kube.namespace).link("player") == NO_LINK


def test_the_operator_changes_nothing_in_other_namespaces(installation: Installation, namespace: str) -> None:
    with Kube(installation.cluster, namespace) as elsewhere, installation.as_operator(namespace) as operator:
        elsewhere.link("player")

        def refusal() -> str:
            try:
                operator.patch("podlinks", "player", {"metadata": {"labels": {"a": "b"}}})
            except RequestError as error:
                return str(error)
            return ""  # a new policy takes a moment

        told = "this operator changes PodLinks in the namespaces of watch.namespaces only"
        until(lambda: told in refusal(), 30, "the refusal")
        elsewhere.clear()


def test_without_the_right_the_command_that_frees_the_namespace_is_named_and_works(
    installation: Installation, chat: Kube, chat_wire: Wire
) -> None:
    installation.close_cluster_roles()
    installation.grant("rbac.namespaceDeletion=false")
    chat.stateful_set("lobby", 1)
    with installation.start() as operator:
        operator.await_start()
        linked(chat, "player")
    chat.kubectl("delete", "namespace", chat.namespace, "--wait=false")
    until(lambda: not chat.kubectl("get", "role", "-o", "name"), 30, "the role to be gone")
    with installation.start() as operator:
        command = f"podlink release --namespace {chat.namespace} --redis-url URL"
        operator.await_reason(f"if the namespace is being deleted, run: {command}\n")
        assert failing(operator, chat, "Forbidden") == 1
        ran = podlink(installation, *command.split()[1:-1], installation.redis_server.url)
        assert (ran.returncode, ran.stdout) == (
            0,
            f"podlink/player in namespace {chat.namespace}: link to pod 0 released, finalizer removed\n",
        )
        until(lambda: is_gone(installation.cluster, chat.namespace), 60, "the namespace to be gone")
        assert chat_wire.link("player") == NO_LINK
