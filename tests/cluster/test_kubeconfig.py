"""What a kubeconfig says holds for LIST and for the watches alike, on a real API server."""

from __future__ import annotations

import json
import stat
import sys
from typing import TYPE_CHECKING, Any

import pytest

from cluster.fronts import Front, connect_proxy
from cluster.harness import Kube, Wire, eventually
from cluster.operators import Operator, start_operator
from cluster.test_rights import RULES, grant

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from sandbox.control_plane import ControlPlane
    from sandbox.redis_servers import RedisServer

GROUP = "rbac.authorization.k8s.io"


@pytest.fixture
def own(control_plane: ControlPlane, namespace: str) -> Iterator[Kube]:
    with Kube(control_plane, namespace) as client:
        grant(client, **RULES)
        yield client
        client.clear()


@pytest.fixture
def wire(redis_server: RedisServer, own: Kube) -> Iterator[Wire]:
    with redis_server.client() as client:
        yield Wire(client, own.namespace)


def write(file: Path, *, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None) -> Path:
    """A kubeconfig of one file that has only these."""
    content: dict[str, Any] = {"current-context": ""}
    if cluster is not None:
        content["clusters"] = [{"name": "c", "cluster": cluster}]
        content["contexts"] = [{"name": "x", "context": {"cluster": "c", "user": "u"}}]
        content["current-context"] = "x"
    if user is not None:
        content["users"] = [{"name": "u", "user": user}]
    file.write_text(json.dumps(content))
    return file


def start(own: Kube, redis_server: RedisServer, *files: Path | str) -> AbstractContextManager[Operator]:
    flags = ("--redis-url", redis_server.url, "--namespace", own.namespace)
    return start_operator(own.cluster, *flags, KUBECONFIG=":".join(map(str, files)))


def works(operator: Operator, own: Kube, wire: Wire) -> None:
    """A pod that comes after the first LIST is linked, which takes the watches and PATCH."""
    operator.await_start()
    operator.await_ready()
    own.stateful_set("lobby", 1)
    own.link("player", podId=0)
    eventually(lambda: own.report("player"), ("Linked", "Linked", 0))
    eventually(wire.states, {"0": "Ready"})


def test_proxy_server_name_authority_and_client_certificate_from_several_files(
    control_plane: ControlPlane, own: Kube, wire: Wire, redis_server: RedisServer, tmp_path: Path
) -> None:
    subject = {"kind": "User", "apiGroup": GROUP, "name": "certified"}
    reference = {"apiGroup": GROUP, "kind": "Role", "name": "operator"}
    binding = {"metadata": {"name": "certified"}, "roleRef": reference, "subjects": [subject]}
    own.cluster.apply({"apiVersion": f"{GROUP}/v1", "kind": "RoleBinding", **binding}, namespace=own.namespace)
    for name in ("ca.crt", "client.crt", "client.key"):
        (tmp_path / name).symlink_to(control_plane.directory / name)
    user = write(tmp_path / "user", user={"client-certificate": "client.crt", "client-key": "client.key"})
    (tmp_path / "empty").touch()
    port = int(control_plane.api_server_url.rpartition(":")[2])
    with connect_proxy(port) as (proxy, targets):
        cluster = {
            # No certificate is for that name, and only the proxy knows where it is.
            "server": "https://api.example:6443",
            "proxy-url": proxy,
            "certificate-authority": "ca.crt",
        }
        nameless = write(tmp_path / "nameless", cluster=cluster)
        with start(own, redis_server, user, nameless) as operator:
            operator.await_reason("certificate is not valid for 'api.example'")
        named = write(tmp_path / "named", cluster={**cluster, "tls-server-name": "kubernetes.default.svc"})
        with start(own, redis_server, user, tmp_path / "missing", tmp_path / "empty", named, nameless) as operator:
            works(operator, own, wire)
    assert set(targets) == {"api.example:6443"}


def test_plugin_impersonation_and_an_unverified_server(
    control_plane: ControlPlane, own: Kube, wire: Wire, redis_server: RedisServer, tmp_path: Path
) -> None:
    token = json.loads(control_plane.kubeconfig.read_text())["users"][0]["user"]["token"]
    version = "client.authentication.k8s.io/v1"
    credential = {"apiVersion": version, "kind": "ExecCredential", "status": {"token": token}}
    plugin = tmp_path / "plugin"
    plugin.write_text(f"#!{sys.executable}\nprint({json.dumps(credential)!r})\n")
    plugin.chmod(stat.S_IRWXU)
    account = f"system:serviceaccount:{own.namespace}:operator"
    user = {"exec": {"command": "./plugin", "apiVersion": version, "interactiveMode": "Never"}, "as": account}
    cluster = {"server": control_plane.api_server_url, "insecure-skip-tls-verify": True}
    grant(own, **{**RULES, "pods": {**RULES["pods"], "verbs": ["list"]}})
    with start(own, redis_server, write(tmp_path / "config", cluster=cluster, user=user)) as operator:
        # It may everything but for the impersonation.
        operator.await_reason(f"{account} may not watch pods in namespace {own.namespace}")
        operator.await_reason(f"the watch of pods in namespace {own.namespace} is not connected yet: HTTP 403")
        grant(own, **RULES)
        works(operator, own, wire)


def test_ready_means_that_each_watch_is_connected(
    control_plane: ControlPlane, own: Kube, wire: Wire, redis_server: RedisServer, tmp_path: Path
) -> None:
    token = json.loads(control_plane.kubeconfig.read_text())["users"][0]["user"]["token"]
    with Front(control_plane.api_server_url, token) as front:
        front.refused = "statefulsets"
        config = write(tmp_path / "config", cluster={"server": front.url}, user={})
        with start(own, redis_server, config) as operator:
            told = f"the watch of statefulsets in namespace {own.namespace} is not connected yet: HTTP 503"
            assert "the watch of pods" not in operator.await_reason(told)
            front.refused = ""
            works(operator, own, wire)

            front.refused = "pods"
            front.end_watches()
            operator.await_reason("watch")
            front.refused = ""
            operator.await_ready()
