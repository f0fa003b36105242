"""The chart on a real API server: every object is valid there, and releases come, change and go."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import yaml

from cluster.harness import eventually
from sandbox.cluster import CHART
from sandbox.helm import RELEASE, HelmError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandbox.cluster import Cluster
    from sandbox.control_plane import ControlPlane
    from sandbox.helm import Helm

VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
URL = ("--set", "redis.url=redis://redis.data:6379/0")
TYPE = "customresourcedefinition.apiextensions.k8s.io/podlinks.podlink.io"
POLICIES = ("mutatingadmissionpolicy", "mutatingadmissionpolicybinding")


class Release:
    """One release of the chart."""

    def __init__(self, helm: Helm, cluster: Cluster, namespace: str) -> None:
        self.helm = helm
        self.cluster = cluster
        self.namespace = namespace

    def run(self, verb: str, *args: str | Path) -> str:
        where = ("--namespace", self.namespace)
        return self.helm.run(verb, RELEASE, *args, *where, cluster=self.cluster).stdout

    def install(self, *flags: str, chart: Path = CHART) -> str:
        """Install it and wait until its pods are Ready; returns what helm says."""
        return self.run("install", chart, *URL, *flags, "--wait", "--timeout", "60s")

    def upgrade(self, *flags: str) -> str:
        return self.run("upgrade", CHART, *URL, *flags, "--wait", "--timeout", "60s")

    def uninstall(self) -> str:
        return self.run("uninstall", "--wait", "--timeout", "60s")

    def manifest(self) -> str:
        where = ("--namespace", self.namespace)
        return self.helm.run("get", "manifest", RELEASE, *where, cluster=self.cluster).stdout

    def left(self, manifest: str) -> list[str]:
        """Which objects of a manifest are there."""
        found = self.cluster.kubectl("get", "--ignore-not-found", "-o", "name", "-f", "-", input=manifest)
        return found.stdout.split()


@pytest.fixture
def release(helm: Helm, bare_cluster: ControlPlane, restricted: str) -> Iterator[Release]:
    running = Release(helm, bare_cluster, restricted)
    yield running
    where = ("--namespace", restricted)
    helm.run("uninstall", RELEASE, *where, "--ignore-not-found", "--wait", cluster=bare_cluster)


def names(cluster: Cluster, kind: str, *args: str) -> list[str]:
    return cluster.kubectl("get", kind, "-o", "name", *args).stdout.split()


def columns(cluster: Cluster) -> list[str]:
    """What `kubectl get podlinks -o wide` shows."""
    (version,) = cluster.kubectl_json("get", TYPE)["spec"]["versions"]
    return [column["name"] for column in version["additionalPrinterColumns"]]


def podlink(name: str) -> dict[str, object]:
    spec = {"uid": name, "service": "lobby"}
    return {"apiVersion": "podlink.io/v1alpha1", "kind": "PodLink", "metadata": {"name": name}, "spec": spec}


@pytest.mark.parametrize("values", VALUES, ids=[path.stem.removesuffix("-values") for path in VALUES])
def test_every_object_is_valid(helm: Helm, monitored_cluster: ControlPlane, restricted: str, values: Path) -> None:
    manifest = helm.render("--values", values, namespace=restricted)

    applied = monitored_cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input=manifest)

    assert len(applied.stdout.splitlines()) == sum(1 for each in yaml.safe_load_all(manifest) if each)
    assert "Warning" not in applied.stderr, "of Pod Security, or of a field that is on its way out"


def test_release_comes_and_goes(release: Release) -> None:
    cluster, namespace = release.cluster, release.namespace

    said = release.install()

    assert f"kubectl rollout status deployment/podlink -n {namespace}" in said
    pods = cluster.kubectl_json("get", "pods", "-n", namespace, "-l", "app.kubernetes.io/name=podlink")["items"]
    assert [pod["spec"]["serviceAccountName"] for pod in pods] == ["podlink"], "restricted Pod Security lets it in"
    assert all(names(cluster, kind) == [f"{kind}.admissionregistration.k8s.io/podlink-finalizer"] for kind in POLICIES)
    cluster.await_podlinks()
    cluster.apply(podlink("player-1"), namespace=namespace)

    manifest = release.manifest()
    release.uninstall()

    assert release.left(manifest) == [TYPE]
    assert "deletionTimestamp" not in cluster.kubectl_json("get", TYPE)["metadata"]
    assert names(cluster, "secrets,configmaps,pods", "-n", namespace) == ["configmap/kube-root-ca.crt"]
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

    manifest = release.manifest()
    release.uninstall()

    # The API server takes its time to end with a type.
    eventually(lambda: release.left(manifest), [])


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
