"""A right that the operator's role lacks is named, before anything has failed for the want of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cluster.harness import Kube
from cluster.operators import Operator, start_operator
from sandbox.processes import eventually, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from sandbox.cluster import Cluster
    from sandbox.redis_servers import RedisServer

READ = ["list", "watch"]
REASON_SECONDS = 40
"""Rights are asked for again after pauses that grow."""
RULES = {
    "pods": {"apiGroups": [""], "resources": ["pods"], "verbs": READ},
    "statefulsets": {"apiGroups": ["apps"], "resources": ["statefulsets"], "verbs": READ},
    "podlinks": {"apiGroups": ["podlink.io"], "resources": ["podlinks"], "verbs": [*READ, "patch"]},
    "status": {"apiGroups": ["podlink.io"], "resources": ["podlinks/status"], "verbs": ["patch"]},
    "events": {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
    "leases": {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
}


def grant(kube: Kube, **rules: dict) -> None:
    """Give the service account `operator` these rights and no others."""
    kind = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "operator"}}
    role = {**kind, "kind": "Role", "rules": list(rules.values())}
    binding = {
        **kind,
        "kind": "RoleBinding",
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"},
        "subjects": [{"kind": "ServiceAccount", "name": "operator"}],
    }
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator"}}
    kube.cluster.apply(account, role, binding, namespace=kube.namespace)


@pytest.fixture
def own(cluster: Cluster, namespace: str) -> Iterator[Kube]:
    with Kube(cluster, namespace) as client:
        yield client


@pytest.fixture
def kubeconfig(own: Kube, tmp_path: Path) -> Path:
    """Of the service account `operator`."""
    grant(own)
    file = tmp_path / "kubeconfig"
    own.cluster.write_kubeconfig(file, {"token": own.kubectl("create", "token", "operator").strip()})
    return file


def start(own: Kube, redis_server: RedisServer, kubeconfig: Path, *flags: str) -> AbstractContextManager[Operator]:
    flags = ("--redis-url", redis_server.url, "--namespace", own.namespace, *flags)
    return start_operator(own.cluster, *flags, KUBECONFIG=str(kubeconfig))


def test_the_verbs_the_resources_and_the_account_are_named(
    own: Kube, redis_server: RedisServer, kubeconfig: Path
) -> None:
    lacking = {
        "pods": {**RULES["pods"], "verbs": ["list"]},
        "statefulsets": {**RULES["statefulsets"], "verbs": ["watch"]},
        "podlinks": {**RULES["podlinks"], "verbs": READ},
    }
    grant(own, **lacking)
    missing = (
        "watch pods",
        "list statefulsets.apps",
        "patch podlinks.podlink.io",
        "patch podlinks.podlink.io/status",
        "create events.events.k8s.io",
    )
    shown = ", ".join(f"{right} in namespace {own.namespace}" for right in missing)
    account = f"system:serviceaccount:{own.namespace}:operator"
    told = f"{account} may not {shown}: grant it by a role that is bound to it"
    with start(own, redis_server, kubeconfig) as operator:
        operator.await_reason(told, REASON_SECONDS)
        assert operator.readyz()[0] == 503
        assert any(told in entry["message"] for entry in operator.log())

        grant(own, **RULES)
        operator.await_ready()


def test_a_right_that_is_taken_away_later_is_named_when_it_is_missed(
    own: Kube, redis_server: RedisServer, kubeconfig: Path
) -> None:
    grant(own, **RULES)
    with start(own, redis_server, kubeconfig) as operator:
        operator.await_start()
        operator.await_ready()
        grant(own, **{**RULES, "status": RULES["pods"]})
        own.link("player")
        operator.await_reason(f"may not patch podlinks.podlink.io/status in namespace {own.namespace}", REASON_SECONDS)

        grant(own, **RULES)
        operator.await_ready()
        eventually(lambda: own.report("player")[:2], ("Pending", "WaitingForService"), timeout=60)
        own.clear()


def test_rights_on_the_lease_are_named(own: Kube, redis_server: RedisServer, kubeconfig: Path) -> None:
    grant(own, **{**RULES, "leases": RULES["pods"]})
    with start(own, redis_server, kubeconfig, "--leader-elect", "--lease-namespace", own.namespace) as operator:
        operator.await_reason("may not get leases.coordination.k8s.io", REASON_SECONDS)
        operator.await_reason(f"Lease {own.namespace}/podlink cannot be used", REASON_SECONDS)
        grant(own, **RULES)
        operator.await_ready()
        until(lambda: operator.metric("podlink_leader") == 1, 30, "it to lead")


def test_all_namespaces_are_named_where_all_are_watched(own: Kube, redis_server: RedisServer, kubeconfig: Path) -> None:
    grant(own, **RULES)
    flags = ["--redis-url", redis_server.url]
    with start_operator(own.cluster, *flags, KUBECONFIG=str(kubeconfig)) as operator:
        operator.await_reason("may not list pods in all namespaces, watch pods in all namespaces", REASON_SECONDS)


def test_a_namespace_that_is_not_there_is_told_of(cluster: Cluster, redis_server: RedisServer) -> None:
    with start_operator(cluster, "--redis-url", redis_server.url, "--namespace", "no-such-games") as operator:
        operator.await_start()
        operator.await_ready()
        told = "--namespace no-such-games: there is no such namespace (yet)"
        until(lambda: any(told == entry["message"] for entry in operator.log()), 60, "the log to say so")
