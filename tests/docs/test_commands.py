"""What the pages tell people to do with Helm and Kustomize: the real programs take it."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from docs.pages import commands_of, documents_of
from podlink import __version__
from sandbox.cluster import KUBECTL, REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.helm import Helm

# Most of the shown values are of one part of the chart, and it renders with a Redis only.
REDIS = {"urlSecret": {"name": "podlink-redis"}}


@pytest.mark.parametrize("words", commands_of("helm"), ids=" ".join)
def test_helm_knows_the_flags(helm: Helm, words: list[str]) -> None:
    known = helm.run(words[0], "--help").stdout
    for flag in (word.split("=")[0] for word in words if word.startswith("-")):
        assert re.search(rf"^\s+(-\w, )?{flag}\b", known, re.MULTILINE), flag


@pytest.mark.parametrize("words", [words for words in commands_of("helm") if words[0] == "install"], ids=" ".join)
def test_installed_release_is_as_told(helm: Helm, words: list[str]) -> None:
    settings = [part for flag, value in pairwise(words) if flag == "--set" for part in (flag, value)]
    (deployment,) = [each for each in helm.objects(*settings) if each["kind"] == "Deployment"]
    assert (deployment["metadata"]["name"], deployment["metadata"]["namespace"]) == ("podlink", "podlink-system")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"registry.example.com/podlink:{__version__}"


@pytest.mark.parametrize("values", documents_of("values"), ids="-".join)
def test_shown_values_render(helm: Helm, values: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump({"redis": REDIS} | values))
    assert any(each["kind"] == "Deployment" for each in helm.objects("--values", file))


def test_shown_kustomization_builds(tmp_path: Path) -> None:
    (kustomization,) = documents_of("Kustomization")
    shutil.copytree(REPOSITORY / "deploy/kustomize", tmp_path / "deploy/kustomize")
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    built = subprocess.run([KUBECTL, "kustomize", tmp_path], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    objects = list(yaml.safe_load_all(built.stdout))
    (deployment,) = [each for each in objects if each["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"registry.example.com/podlink:{__version__}"
    assert any(each["kind"] == "MutatingAdmissionPolicy" for each in objects)
