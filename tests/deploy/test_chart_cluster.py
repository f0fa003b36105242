"""The chart on a real API server: every object is valid there, and releases come, change and go."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

import pytest
import yaml

from deploy.chart import URL, each_values_file
from sandbox.cluster import CHART
from sandbox.helm import HelmError, Release, settings
from sandbox.processes import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandbox.cluster import Cluster
    from sandbox.control_plane import ControlPlane
    from sandbox.helm import Helm

TYPE = "customresourcedefinition.apiextensions.k8s.io/podlinks.podlink.io"
GROUP = "admissionregistration.k8s.io"
POLICIES = ("mutatingadmissionpolicy", "mutatingadmissionpolicybinding")


@pytest.fixture
def release(helm: Helm, bare_cluster: ControlPlane, restricted: str) -> Iterator[Release]:
    with Release(helm, bare_cluster, restricted, *settings(URL)) as running:
        yield running


def left(release: Release, manifest: str) -> list[str]:
    """Which objects of a manifest are there."""
    return release.cluster.kubectl("get", "--ignore-not-found", "-o", "name", "-f", "-", input=manifest).stdout.split()


def names(cluster: Cluster, kind: str, *args: str) -> list[str]:
    return cluster.kubectl("get", kind, "-o", "name", *args).stdout.split()


def columns(cluster: Cluster) -> list[str]:
    """What `kubectl get podlinks -o wide` shows."""
    (version,) = cluster.kubectl_json("get", TYPE)["spec"]["versions"]
    return [column["name"] for column in version["additionalPrinterColumns"]]


def podlink(name: str) -> dict[str, object]:
    spec = {"uid": name, "service": "lobby"}
    return {"apiVersion": "podlink.io/v1alpha1", "kind": "PodLink", "metadata": {"name": name}, "spec": spec}


@each_values_file
def test_every_object_is_valid(helm: Helm, monitored_cluster: ControlPlane, restricted: str, values: Path) -> None:
    # A policy that is asked for by name is refused where the API server does not have its kind.
    policy = [] if monitored_cluster.serves_policies() else settings("finalizerPolicy=auto")
    manifest = helm.render("--values", values, *policy, namespace=restricted)

    applied = monitored_cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input=manifest)

    assert len(applied.stdout.splitlines()) == sum(1 for each in yaml.safe_load_all(manifest) if each)
    assert "Warning" not in applied.stderr, "of Pod Security, or of a field that is on its way out"


@pytest.mark.parametrize("name", ["games.v1", "1.lobby", "podlink.prod", f"{25 * 'a.'}abc", 53 * "7"])
def test_every_name_of_a_release_makes_valid_names(
    helm: Helm, monitored_cluster: ControlPlane, restricted: str, name: str
) -> None:
    values = ("--values", CHART / "ci" / "monitoring-values.yaml")
    manifest = helm.run("template", name, CHART, "--namespace", restricted, *values).stdout

    monitored_cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input=manifest)

    # A Service is found by DNS: RFC 1035, which older API servers insist on.
    (service,) = [each for each in yaml.safe_load_all(manifest) if each and each["kind"] == "Service"]
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", service["metadata"]["name"])
    assert service["spec"]["selector"]["app.kubernetes.io/instance"] == name


def test_release_comes_and_goes(release: Release) -> None:
    cluster, namespace = release.cluster, release.namespace

    said = release.install()
    manifest = release.run("get manifest")

    assert f"kubectl rollout status deployment/podlink -n {namespace}" in said
    pods = cluster.kubectl_json("get", "pods", "-n", namespace, "-l", "app.kubernetes.io/name=podlink")["items"]
    assert [pod["spec"]["serviceAccountName"] for pod in pods] == ["podlink"], "restricted Pod Security lets it in"
    if cluster.serves_policies():
        assert all(names(cluster, kind) == [f"{kind}.{GROUP}/podlink-finalizer"] for kind in POLICIES)
    else:
        assert GROUP not in manifest
    cluster.await_podlinks()
    cluster.apply(podlink("player-1"), namespace=namespace)

    release.uninstall()

    assert left(release, manifest) == [TYPE]
    assert "deletionTimestamp" not in cluster.kubectl_json("get", TYPE)["metadata"]
    # What helm waits for are the release's own objects, not the pods that they made.
    eventually(lambda: names(cluster, "secrets,configmaps,pods", "-n", namespace), ["configmap/kube-root-ca.crt"])
    assert names(cluster, "podlinks", "-n", namespace) == ["podlink.podlink.io/player-1"], "kept, as the type is"

    release.install()
    assert names(cluster, "podlinks", "-n", namespace) == ["podlink.podlink.io/player-1"]


def test_upgrade_changes_the_type_and_what_values_change(release: Release, tmp_path: Path) -> None:
    cluster, namespace = release.cluster, release.namespace
    older = tmp_path / "podlink"
    shutil.copytree(CHART, older)
    crd = older / "files" / "podlinks.yaml"
    crd.write_text(crd.read_text().replace("- name: Service\n", "- name: Svc\n"))
    release.install(chart=older)
    assert "Svc" in columns(cluster)

    release.upgrade("--set", "replicas=2", "--set", "podDisruptionBudget.enabled=true")

    assert "Service" in columns(cluster)
    assert "Svc" not in columns(cluster)
    assert len(names(cluster, "pods", "-n", namespace)) == 2
    assert names(cluster, "poddisruptionbudgets", "-n", namespace) == ["poddisruptionbudget.policy/podlink"]

    release.upgrade()
    assert names(cluster, "poddisruptionbudgets", "-n", namespace) == []

    release.run("rollback", "1", "--wait", "--timeout", "60s")
    assert "Svc" in columns(cluster)


def test_type_that_kubectl_applied_is_taken_over(release: Release) -> None:
    release.cluster.install_podlink()
    with pytest.raises(HelmError, match="cannot be imported into the current release"):
        release.install()

    release.install("--take-ownership", "--force-conflicts")

    labels = release.cluster.kubectl_json("get", TYPE)["metadata"]["labels"]
    assert labels["app.kubernetes.io/managed-by"] == "Helm"


def test_type_can_be_left_to_others(release: Release) -> None:
    release.install("--set", "crds.install=false", "--set", "finalizerPolicy=disabled")

    assert TYPE not in names(release.cluster, "crd")
    assert not [name for kind in POLICIES for name in names(release.cluster, kind)]


def test_type_goes_with_the_release_when_told_so(release: Release) -> None:
    said = release.install("--set", "crds.keep=false")
    assert TYPE in names(release.cluster, "crd")
    assert "Before you uninstall, delete all PodLinks" in said

    manifest = release.run("get manifest")
    release.uninstall()

    # The API server takes its time to end with a type.
    eventually(lambda: left(release, manifest), [])


def test_people_get_rights_by_the_roles_that_clusters_have(release: Release) -> None:
    cluster, namespace = release.cluster, release.namespace
    release.install()
    for role in ("view", "edit", "admin"):
        user = f"--user={role}er"
        cluster.kubectl("create", "rolebinding", role, f"--clusterrole={role}", user, "-n", namespace)

    def rights(role: str, resource: str) -> str:
        rows = cluster.kubectl("auth", "can-i", "--list", "--no-headers", "-n", namespace, f"--as={role}er").stdout
        return " ".join(row.rpartition("[")[2].rstrip("]") for row in rows.splitlines() if row.split()[0] == resource)

    everything = "get list watch create update patch delete deletecollection"
    # A controller of the cluster adds them to its roles.
    eventually(lambda: rights("view", "podlinks.podlink.io"), "get list watch")
    eventually(lambda: rights("edit", "podlinks.podlink.io"), everything)
    eventually(lambda: rights("admin", "podlinks.podlink.io"), everything)
    assert {rights(role, "podlinks.podlink.io/status") for role in ("view", "edit", "admin")} == {"get"}


def test_no_finalizer_where_nobody_would_take_it_away(release: Release) -> None:
    cluster = release.cluster
    served, other = (cluster.create_namespace() for _ in range(2))

    def finalizers(namespace: str) -> list[str] | None:
        """Of a PodLink that is created there, in a dry run; None while the API server does not apply the policy yet."""
        created = cluster.kubectl(
            *("create", "--dry-run=server", "-o", "json", "-n", namespace, "-f", "-"),
            input=json.dumps(podlink("player-1")),
            check=False,
        )
        return json.loads(created.stdout)["metadata"].get("finalizers", []) if created.returncode == 0 else None

    release.install("--set", f"watch.namespaces={{{served}}}")
    eventually(lambda: finalizers(served), ["podlink.io/release"], timeout=30)
    assert finalizers(other) == []

    release.upgrade("--set", f"watch.namespaces={{{other}}}")
    eventually(lambda: finalizers(other), ["podlink.io/release"], timeout=30)
    assert finalizers(served) == []
    for namespace in (served, other):
        cluster.delete_namespace(namespace)
