"""Helm on the chart, as its users run it: the real program, with settings and caches that nobody else has."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any, Self

import yaml

from sandbox import binaries
from sandbox.cluster import CHART

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.cluster import Cluster

RELEASE = "podlink"
NAMESPACE = "podlink-system"
TIMEOUT_SECONDS = 120

_WAIT = ("--wait", "--timeout", "60s")


class HelmError(RuntimeError):
    """A helm command failed; the text is the command and what it said on stderr."""


class Helm:
    """Helm, built when there is none yet.

    Args:
        directory: for its settings and caches.
    """

    def __init__(self, directory: Path) -> None:
        self._program = binaries.ensure(binaries.HELM) / "helm"
        self._directory = directory

    def run(
        self, *args: str | Path, cluster: Cluster | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run helm and return its exit code, stdout and stderr, as text.

        Args:
            args: the words after `helm`.
            cluster: the one it talks to; without it, helm knows none.
            check: raise HelmError when it fails.
        """
        # The user's settings for helm elsewhere (HELM_NAMESPACE, …) are not meant for this one.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HELM_")}
        homes = {f"HELM_{name}_HOME": str(self._directory / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
        kubeconfig = cluster.kubeconfig if cluster else self._directory / "no-cluster"
        result = subprocess.run(
            [self._program, *args],
            env=inherited | homes | {"KUBECONFIG": str(kubeconfig)},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        if check and result.returncode != 0:
            raise HelmError(f"helm {' '.join(map(str, args))}: exit code {result.returncode}\n{result.stderr}")
        return result

    def render(self, *args: str | Path, namespace: str = NAMESPACE) -> str:
        """What `helm template` makes of the chart with these flags, as text."""
        return self.run("template", RELEASE, CHART, "--namespace", namespace, *args).stdout

    def objects(self, *args: str | Path, namespace: str = NAMESPACE) -> list[dict[str, Any]]:
        """`render`, decoded."""
        return [each for each in yaml.safe_load_all(self.render(*args, namespace=namespace)) if each]


def settings(*pairs: str) -> list[str]:
    """Flags that set these values, each `path=value`."""
    return [word for pair in pairs for word in ("--set", pair)]


class Release:
    """A release of the chart, installed when told to, and gone at the end of a `with` block. Blocking.

    Args:
        helm: what installs it.
        cluster: where.
        namespace: the release's own.
        flags: of every `install` and `upgrade`.
    """

    def __init__(self, helm: Helm, cluster: Cluster, namespace: str, *flags: str) -> None:
        self.helm = helm
        self.cluster = cluster
        self.namespace = namespace
        self._flags = flags

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.uninstall()

    def run(self, verb: str, *args: str | Path) -> str:
        """Run `helm VERB` on the release; returns what it says."""
        where = ("--namespace", self.namespace)
        return self.helm.run(*verb.split(), RELEASE, *args, *where, cluster=self.cluster).stdout

    def install(self, *flags: str, chart: Path = CHART) -> str:
        """Install it, and wait until its pods are Ready."""
        return self.run("install", chart, *self._flags, *flags, *_WAIT)

    def upgrade(self, *flags: str) -> str:
        """Upgrade it, and wait until its pods are Ready."""
        return self.run("upgrade", CHART, *self._flags, *flags, *_WAIT)

    def uninstall(self) -> None:
        """Uninstall it and wait until its objects are gone; one that is not there is fine."""
        self.run("uninstall", "--ignore-not-found", *_WAIT)
