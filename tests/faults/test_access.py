"""The operator's access to the API server changes under it: its token is replaced, its permissions are taken away."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from cluster.harness import Kube, Wire, disagreement
from cluster.operators import Operator, start_operator
from sandbox.processes import eventually, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandbox.cluster import Cluster
    from sandbox.control_plane import ControlPlane
    from sandbox.redis_servers import RedisServer

BINDING = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "RoleBinding",
    "metadata": {"name": "operator"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"},
    "subjects": [{"kind": "ServiceAccount", "name": "operator"}],
}
WATCH = ["get", "list", "watch"]
ROLE = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "Role",
    "metadata": {"name": "operator"},
    "rules": [
        {"apiGroups": [""], "resources": ["pods"], "verbs": WATCH},
        {"apiGroups": ["apps"], "resources": ["statefulsets"], "verbs": WATCH},
        {"apiGroups": ["podlink.io"], "resources": ["podlinks"], "verbs": [*WATCH, "patch"]},
        {"apiGroups": ["podlink.io"], "resources": ["podlinks/status"], "verbs": ["patch"]},
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
    ],
}

GIVE_UP_SECONDS = 200
"""A watch whose connection died without a word is noticed after 70 s (Kopf's inactivity_timeout: the server sends a
bookmark each minute); seven refused attempts and Kopf's own end take some 15 s more."""


@pytest.fixture
def token_file(kube: Kube, tmp_path: Path) -> Path:
    """The token of a service account that may do what the operator needs, and no more."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator"}}
    kube.cluster.apply(account, ROLE, BINDING, namespace=kube.namespace)
    file = tmp_path / "token"
    file.write_text(new_token(kube, "first"))
    return file


def new_token(kube: Kube, name: str) -> str:
    """A token that is good until the Secret of that name is deleted."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}
    kube.cluster.apply(secret, namespace=kube.namespace)
    bound = ["--bound-object-kind=Secret", f"--bound-object-name={name}"]
    return kube.kubectl("create", "token", "operator", *bound).strip()


@pytest.fixture
def operator(
    cluster: Cluster, kube: Kube, wire: Wire, token_file: Path, tmp_path: Path, redis_server: RedisServer
) -> Iterator[Operator]:
    """One that reads its token from the file."""
    kubeconfig = tmp_path / "kubeconfig"
    cluster.write_kubeconfig(kubeconfig, {"tokenFile": str(token_file)})
    flags = ["--redis-url", redis_server.url, "--namespace", kube.namespace]
    with start_operator(cluster, *flags, KUBECONFIG=str(kubeconfig)) as running:
        running.await_start()
        running.await_ready()
        kube.link("before", podId=0)
        eventually(lambda: kube.report("before"), ("Linked", "Linked", 0))
        yield running
        # That it lacks rights is an error, and here somebody takes them away.
        faults = [line for line in running.faults() if "podlink.cluster.preflight" not in line]
        assert not faults, "\n".join(faults)


def await_reaction(kube: Kube, wire: Wire, operator: Operator) -> None:
    kube.link("after", podId=1)
    eventually(lambda: kube.report("after"), ("Linked", "Linked", 1), timeout=60)
    kube.scale("lobby", 3)
    eventually(wire.states, {"0": "Ready", "1": "Ready", "2": "Ready"}, timeout=60)
    eventually(operator.readyz, (200, "ok\n"), timeout=60)
    eventually(lambda: disagreement(kube, wire), {})


def test_a_token_that_was_replaced_is_read_again(
    control_plane: ControlPlane, kube: Kube, wire: Wire, operator: Operator, token_file: Path
) -> None:
    token_file.write_text(new_token(kube, "second"))
    kube.kubectl("delete", "secret", "first")
    # Else it would take the old token for some seconds more, and the watches would never be asked for one.
    control_plane.restart_api_server()

    await_reaction(kube, wire, operator)


def test_permissions_that_were_taken_away_and_given_back(
    control_plane: ControlPlane, kube: Kube, wire: Wire, operator: Operator
) -> None:
    kube.kubectl("delete", "rolebinding", "operator")
    control_plane.restart_api_server()  # ends the watches
    until(lambda: operator.metric("podlink_watch_restarts_total") >= 1, GIVE_UP_SECONDS, "the watches to give up")
    until(lambda: "forbidden" in operator.readyz()[1], 60, "the operator to say why it is not ready")
    assert operator.readyz()[0] == 503
    until(lambda: operator.said("may not list pods"), 60, "it to name the rights")
    # One line says that the watches are down, before or after they gave up, and one why. The attempts that follow say
    # nothing new.
    watches, sweep = until(
        lambda: lines if len(lines := operator.said(f"namespace {kube.namespace} is not served: ")) > 1 else None,
        60,
        "the operator to say what is wrong",
    )
    assert re.search(r": the watch(es ended| of \w+ in namespace \S+ has been down for \d+ s): ", watches)
    assert "pods is forbidden" in sweep
    assert "Grant the operator its role there" in sweep
    assert (wire.states(), wire.link("before")) == ({"0": "Ready", "1": "Ready"}, ("0", "0"))

    kube.cluster.apply(BINDING, namespace=kube.namespace)
    await_reaction(kube, wire, operator)
