"""The operator under the chart's own service account: everything works, and nothing that it was granted is unused.

What it used is what the API server's audit log says that it asked for, of all that can happen to it here.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from cluster.harness import Kube, Wire, disagreement
from cluster.operators import start_operator
from deploy.chart import URL, Right, rights_of
from sandbox.helm import RELEASE, Release, settings
from sandbox.processes import eventually, until
from sandbox.redis_servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandbox.cluster import Cluster
    from sandbox.control_plane import ControlPlane
    from sandbox.helm import Helm

# Of every authenticated user, whoever it is.
DEFAULTS = ("system:basic-user", "system:discovery", "system:public-info-viewer")


Grant = tuple[str, Right]
"""With its namespace; empty: in all of them."""


class Installed(Release):
    """A release of the chart, and its operator as a process of this machine."""

    def __init__(self, helm: Helm, cluster: ControlPlane, namespace: str) -> None:
        # The cluster of the tests has type and policy, which other tests need.
        super().__init__(helm, cluster, namespace, *settings(URL, "crds.install=false", "finalizerPolicy=disabled"))
        self.account = f"system:serviceaccount:{namespace}:{RELEASE}"
        self._audit_log = cluster.audit_log

    def environment(self, directory: Path, redis_url: str) -> dict[str, str]:
        """What the container of the Deployment has, but for the place of its Redis and of its token."""
        deployment = self.cluster.kubectl_json("get", "deployment", RELEASE, "-n", self.namespace)
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        variables = {each["name"]: each.get("value", self.namespace) for each in container["env"]}
        token = self.cluster.kubectl("create", "token", RELEASE, "-n", self.namespace).stdout.strip()
        kubeconfig = directory / "kubeconfig"
        self.cluster.write_kubeconfig(kubeconfig, {"token": token})
        return variables | {"PODLINK_REDIS_URL": redis_url, "KUBECONFIG": str(kubeconfig)}

    def granted(self) -> set[Grant]:
        """What the roles say that are bound to the account."""
        grants = set()
        for kind in ("clusterrolebindings", "rolebindings"):
            for binding in self.cluster.kubectl_json("get", kind, "-A")["items"]:
                account = {"kind": "ServiceAccount", "name": RELEASE, "namespace": self.namespace}
                if account in binding.get("subjects", ()):
                    namespace = binding["metadata"].get("namespace", "")
                    where = ("-n", namespace) if namespace else ()
                    reference = binding["roleRef"]
                    role = self.cluster.kubectl_json("get", reference["kind"], reference["name"], *where)
                    grants |= {(namespace, right) for right in rights_of(role)}
        # What is granted in all namespaces is never looked up in a role of one of them.
        return {(namespace, right) for namespace, right in grants if not namespace or ("", right) not in grants}

    def asked(self) -> list[dict[str, Any]]:
        """What the account asked of the API server."""
        # The last line may be half written.
        lines = self._audit_log.read_text().rpartition("\n")[0].splitlines()
        return [entry for line in lines if (entry := json.loads(line))["user"]["username"] == self.account]

    def refused(self) -> list[str]:
        """What it asked for in vain."""
        return [
            entry["requestURI"]
            for entry in self.asked()
            if entry["annotations"]["authorization.k8s.io/decision"] != "allow"
        ]

    def used(self) -> set[Grant]:
        """What it was allowed by roles that were bound to it."""
        grants = set()
        for entry in self.asked():
            reason = entry["annotations"]["authorization.k8s.io/reason"]
            if not any(f'ClusterRole "{name}"' in reason for name in DEFAULTS):
                reference = entry["objectRef"]
                everywhere = "ClusterRoleBinding" in reason
                namespace = "" if everywhere else reference["namespace"]
                resource = f"{reference['resource']}/{reference.get('subresource', '')}".rstrip("/")
                grants.add((namespace, Right(reference.get("apiGroup", ""), resource, entry["verb"])))
        return grants


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def installed(helm: Helm, control_plane: ControlPlane, restricted: str) -> Iterator[Installed]:
    with Installed(helm, control_plane, restricted) as release:
        yield release


@pytest.fixture
def games(control_plane: ControlPlane) -> Iterator[list[str]]:
    """Two namespaces that are served."""
    names = [control_plane.create_namespace() for _ in range(2)]
    yield names
    for name in names:
        if control_plane.kubectl("get", "namespace", name, check=False).returncode == 0:
            control_plane.delete_namespace(name)


def play(kube: Kube, wire: Wire) -> None:
    """All that the operator does for a namespace."""
    kube.stateful_set("lobby", 3)
    kube.link("explicit", podId=2)
    kube.link("picked", onPodLoss="Relink")
    kube.link("adopted", policy="IfAbsent", podId=1)
    kube.link("waiting", service="nowhere")
    for name, pod in (("explicit", 2), ("adopted", 1)):
        eventually(lambda name=name: kube.report(name), ("Linked", "Linked", pod))
    eventually(lambda: kube.report("picked")[0], "Linked")
    eventually(lambda: kube.report("waiting")[:2], ("Pending", "WaitingForService"))
    kube.scale("lobby", 2)
    kube.edit("explicit", podId=0)
    eventually(lambda: kube.report("explicit"), ("Linked", "Linked", 0))
    kube.unlink("adopted")
    eventually(wire.states, {"0": "Ready", "1": "Ready"})
    eventually(lambda: disagreement(kube, wire), {})
    eventually(lambda: ("Normal", "Linked") in kube.events("explicit"), expected=True)


def free(cluster: Cluster, namespace: str) -> None:
    """Delete a namespace with a PodLink in it."""
    with Kube(cluster, namespace) as kube:
        kube.link("last", podId=0)
        eventually(lambda: kube.report("last"), ("Linked", "Linked", 0))
    cluster.kubectl("delete", "namespace", namespace, "--timeout=60s")


@pytest.mark.parametrize("scope", ["all namespaces", "listed namespaces"])
def test_everything_works_and_nothing_granted_is_unused(
    installed: Installed, games: list[str], redis_server: RedisServer, scope: str, tmp_path: Path
) -> None:
    listed = scope == "listed namespaces"
    installed.install(*(settings(f"watch.namespaces={{{','.join(games)}}}") if listed else ()))
    environment = installed.environment(tmp_path, redis_server.url)
    with ExitStack() as stack:
        operator = stack.enter_context(start_operator(installed.cluster, **environment))
        operator.await_start()
        operator.await_ready()
        client = stack.enter_context(redis_server.client())
        for name in games:
            kube = stack.enter_context(Kube(installed.cluster, name))
            play(kube, Wire(client, name))
            kube.clear()
            eventually(lambda kube=kube: kube.list("podlinks"), [])
        granted, refused = installed.granted(), installed.refused()
        if listed:
            free(installed.cluster, games[0])
        renewed = (installed.namespace, Right("coordination.k8s.io", "leases", "update"))
        until(lambda: renewed in installed.used(), 60, "the lease to be renewed")
        assert operator.process.stop(grace_seconds=20) == 0
        assert not operator.faults()

    assert refused == []
    assert installed.used() == granted
    secrets = [entry["requestURI"] for entry in installed.asked() if "secrets" in entry["requestURI"]]
    assert secrets == []
