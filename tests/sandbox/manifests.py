"""What follows from other files of the checkout: `python -m sandbox.manifests` writes it anew.

The plain manifests follow from the chart: deploy/install.yaml is everything in one file, and deploy/kustomize/base has
a file for each template. The version, wherever it is written, follows from pyproject.toml.
"""

from __future__ import annotations

import re
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.binaries import BinariesError
from sandbox.cluster import CHART, CRD, FINALIZER_POLICY, REPOSITORY
from sandbox.helm import NAMESPACE, Helm, HelmError

if TYPE_CHECKING:
    from collections.abc import Mapping

DEPLOY = REPOSITORY / "deploy"
VALUES = CHART / "ci" / "install-values.yaml"

_NAMESPACE = f"""\
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    pod-security.kubernetes.io/enforce: restricted
"""
_HEADER = """\
# Generated from deploy/chart/podlink (make manifests): change it there.
"""
_INSTALL = f"""\
{_HEADER}#
# PodLink for all namespaces, in {NAMESPACE}. It waits for a Secret with the URL of your Redis:
#
#   kubectl create secret generic podlink-redis -n {NAMESPACE} --from-literal=url=redis://:PASSWORD@HOST:6379/0
#
# Delete the PodLinks before you delete this: it takes the operator, which releases them, along with the type.
"""


_VERSIONED = (
    "Dockerfile",
    "README.md",
    "deploy/chart/podlink/Chart.yaml",
    "deploy/samples/gateway.yaml",
    "docs/index.md",
    "docs/install.md",
)
_VERSION = re.compile(r"(\bpodlink:|\bnewTag: |^ARG VERSION=|^version: |^appVersion: )\d+\.\d+\.\d+", re.MULTILINE)


def versioned() -> dict[str, str]:
    """Return the files that name PodLink's version, with that of pyproject.toml: path in the checkout -> text."""
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    return {path: _VERSION.sub(rf"\g<1>{version}", (REPOSITORY / path).read_text()) for path in _VERSIONED}


def generate(helm: Helm) -> dict[Path, str]:
    """Return the manifests: path below deploy/ -> text."""
    templates = _render(helm)
    base = Path("kustomize", "base")
    policy = Path("kustomize", "components", "finalizer-policy", FINALIZER_POLICY.name)
    files = {base / name: _HEADER + _documents(texts) for name, texts in templates.items()} | chart_files()
    everything = [text for texts in templates.values() for text in texts]
    return files | {
        Path("install.yaml"): _INSTALL + _documents(everything),
        policy: _HEADER + FINALIZER_POLICY.read_text(),
    }


def chart_files() -> dict[Path, str]:
    """What the chart takes from elsewhere: path below deploy/ -> text.

    Helm would follow a symbolic link, but not everything does that brings a chart to a cluster.
    """
    header = "# Generated from crds/podlinks.yaml (make manifests): change it there.\n"
    return {Path("chart", "podlink", "files", CRD.name): header + CRD.read_text()}


def _render(helm: Helm) -> dict[str, list[str]]:
    """Name of the template -> its objects, in the order in which they are to be applied."""
    templates = {"namespace.yaml": [_NAMESPACE]}
    rendered = helm.render("--values", VALUES)
    for document in re.split(r"^---\n", rendered, flags=re.MULTILINE):
        source = re.match(r"# Source: podlink/templates/(\S+)\n", document)
        if source is not None:
            # Helm does not manage what kubectl applies.
            ours = re.sub(r"^ +(helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n", "", document, flags=re.MULTILINE)
            templates.setdefault(source[1], []).append(ours[source.end() :].strip() + "\n")
    return templates


def _documents(texts: list[str]) -> str:
    return "---\n" + "---\n".join(texts)


def main() -> None:
    """Write them."""
    try:
        with tempfile.TemporaryDirectory(prefix="podlink-helm-") as directory:
            # The chart is rendered from the first two.
            _write(REPOSITORY, versioned())
            _write(DEPLOY, chart_files())
            _write(DEPLOY, generate(Helm(Path(directory))))
    except (BinariesError, HelmError) as error:
        sys.exit(f"error: {error}")


def _write(directory: Path, files: Mapping[Path, str] | Mapping[str, str]) -> None:
    for path, text in files.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        print(target.relative_to(REPOSITORY))  # noqa: T201 - what was done


if __name__ == "__main__":
    main()
