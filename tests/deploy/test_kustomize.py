"""The plain manifests beside the chart: the same as the chart, valid, and of use with kustomize."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sandbox import manifests
from sandbox.helm import NAMESPACE
from sandbox.manifests import DEPLOY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandbox.cluster import Cluster
    from sandbox.control_plane import ControlPlane
    from sandbox.helm import Helm

KUSTOMIZE = DEPLOY / "kustomize"
INSTALL = DEPLOY / "install.yaml"


def by_name(text: str) -> dict[str, dict[str, Any]]:
    objects = [each for each in yaml.safe_load_all(text) if each]
    named = {
        "/".join((each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"])): each
        for each in objects
    }
    assert len(named) == len(objects)
    return named


def build(cluster: Cluster, directory: Path) -> str:
    return cluster.kubectl("kustomize", directory).stdout


@pytest.fixture
def system_namespace(control_plane: ControlPlane) -> Iterator[str]:
    """The namespace that the manifests are for, from the manifest itself."""
    control_plane.kubectl("create", "-f", KUSTOMIZE / "base" / "namespace.yaml")
    yield NAMESPACE
    control_plane.kubectl("delete", "namespace", NAMESPACE)


def test_manifests_are_the_charts(helm: Helm) -> None:
    made = manifests.generate(helm)

    different = [str(path) for path, text in made.items() if (DEPLOY / path).read_text() != text]
    assert not different, "run: make manifests"
    there = {path.relative_to(DEPLOY) for path in KUSTOMIZE.rglob("*.yaml") if path.name != "kustomization.yaml"}
    assert there == {path for path in made if path.parts[0] == "kustomize"}, "nothing that the chart no longer has"


def test_base_has_the_objects_of_install_yaml(cluster: Cluster) -> None:
    assert by_name(build(cluster, KUSTOMIZE / "base")) == by_name(INSTALL.read_text())


def test_base_and_install_yaml_are_valid(control_plane: ControlPlane, system_namespace: str) -> None:
    strict = ("apply", "--dry-run=server", "--validate=strict", "-f")
    from_file = control_plane.kubectl(*strict, INSTALL)
    from_base = control_plane.kubectl(*strict, "-", input=build(control_plane, KUSTOMIZE / "base"))

    assert sorted(from_base.stdout.splitlines()) == sorted(from_file.stdout.splitlines())
    assert "deployment.apps/podlink created (server dry run)" in from_file.stdout.splitlines()


def own(directory: Path, **more: str) -> Path:
    """A kustomization of a user: the base with every component."""
    paths = [KUSTOMIZE / "base", KUSTOMIZE / "components" / "namespaced", KUSTOMIZE / "components" / "finalizer-policy"]
    base, *components = [os.path.relpath(path, directory) for path in paths]
    (directory / "kustomization.yaml").write_text(json.dumps({"resources": [base], "components": components, **more}))
    return directory


def test_namespaced_base_stays_where_it_is(cluster: Cluster, tmp_path: Path) -> None:
    objects = by_name(build(cluster, own(tmp_path)))
    for kind in ("Role", "RoleBinding", "Deployment"):
        assert f"{kind}/{NAMESPACE}/podlink" in objects


def test_components_make_it_a_namespaces_own(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> None:
    text = build(control_plane, own(tmp_path, namespace=namespace))
    objects = by_name(text)

    control_plane.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input=text)
    assert not [name for name in objects if name.startswith(("Namespace/", "ClusterRoleBinding/"))]
    in_namespace = [each for each in objects.values() if each["metadata"].get("namespace") == namespace]
    control_plane.apply(*(each for each in in_namespace if not each["kind"].startswith("MutatingAdmission")))
    control_plane.kubectl("rollout", "status", "deployment/podlink", "-n", namespace, "--timeout=60s")

    def may(verb: str, *what: str) -> bool:
        account = f"--as=system:serviceaccount:{namespace}:podlink"
        return control_plane.kubectl("auth", "can-i", verb, *what, account, check=False).returncode == 0

    assert may("patch", "podlinks.podlink.io", "-n", namespace)
    assert may("get", f"namespaces/{namespace}", "-n", namespace)
    assert may("update", "leases.coordination.k8s.io/podlink", "-n", namespace)
    assert not may("list", "pods", "-n", "default")
    assert not may("list", "pods", "--all-namespaces")
